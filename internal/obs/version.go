package obs

// version is set by the linker: -X .../internal/obs.version=v1.2.3.
var version = "v0.0.0-dev"

// Version returns the version that this program was built as.
func Version() string { return version }
