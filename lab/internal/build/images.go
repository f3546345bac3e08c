package build

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/aad-pod-identity/aad-pod-identity/lab/internal/image"
)

// Repository is before the name of every image of a lab, Tag behind it.
const (
	Repository = "lab.local/aad-pod-identity"
	Tag        = "dev"
)

// Archive is an image on disk.
type Archive struct {
	Name, Reference, Path string
	// Digest of the image's manifest.
	Digest string
}

// imageSource says where the program of an image comes from.
type imageSource struct {
	// dir, below the source tree, is the module, and pkg the main package in it.
	dir, pkg string
	// part, if set, is the part that builds the program instead.
	part string
}

func imageSources() map[string]imageSource {
	return map[string]imageSource{
		"pause":    {dir: "lab", pkg: "./cmd/pause"},
		"coredns":  {part: "coredns"},
		"azuresim": {pkg: "./cmd/azuresim"},
		"demo":     {pkg: "./cmd/demo"},
		"mic":      {pkg: "./cmd/mic"},
		"nmi":      {pkg: "./cmd/nmi"},
	}
}

// ImageNames returns the names of all images, sorted.
func ImageNames() []string {
	var names []string
	for n := range imageSources() {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}

// Buildable returns the images whose programs are in the source tree.
func (b Builder) Buildable() []string {
	var names []string
	for _, n := range ImageNames() {
		if b.missing(n) == nil {
			names = append(names, n)
		}
	}
	return names
}

// missing is an error if there is nothing to build the image from.
func (b Builder) missing(name string) error {
	source, ok := imageSources()[name]
	if !ok {
		return fmt.Errorf("building image %s: there is none of that name: choose from %s", name, strings.Join(ImageNames(), ", "))
	}
	if dir := filepath.Join(b.Root, source.dir, source.pkg); source.part == "" && !exists(dir) {
		return fmt.Errorf("building image %s: this source tree has no %s", name, dir)
	}
	return nil
}

// BuildImages builds images, and their programs before them.
func (b Builder) BuildImages(ctx context.Context, names ...string) ([]Archive, error) {
	for _, n := range names {
		if err := b.missing(n); err != nil {
			return nil, err
		}
	}
	var parts []string
	for _, n := range names {
		if part := imageSources()[n].part; part != "" {
			parts = append(parts, part)
		}
	}
	if err := b.Build(ctx, parts...); err != nil {
		return nil, err
	}
	unlock, err := b.lock()
	if err != nil {
		return nil, err
	}
	defer unlock()
	var archives []Archive
	for _, n := range names {
		a, err := b.buildImage(ctx, n)
		if err != nil {
			return nil, fmt.Errorf("building image %s: %w", n, err)
		}
		archives = append(archives, a)
	}
	return archives, nil
}

func (b Builder) buildImage(ctx context.Context, name string) (Archive, error) {
	if source := imageSources()[name]; source.part == "" {
		if err := b.goBuild(ctx, filepath.Join(b.Root, source.dir), name, source.pkg); err != nil {
			return Archive{}, err
		}
	}
	if err := os.MkdirAll(b.Images(), 0o755); err != nil { //nolint:gosec // a build cache
		return Archive{}, fmt.Errorf("making the cache: %w", err)
	}
	return pack(Archive{Name: name, Reference: Repository + "/" + name + ":" + Tag, Path: filepath.Join(b.Images(), name+".tar")}, filepath.Join(b.Programs(), name))
}

// pack writes an archive, unless it holds that very program already: compressing
// is what takes longest of a lab that is built.
func pack(a Archive, program string) (Archive, error) {
	content, err := hashOf(program)
	if err != nil {
		return Archive{}, err
	}
	note := a.Path + ".packed"
	packed, err := os.ReadFile(note) //nolint:gosec // a path of the lab or of the kernel
	if before, digest, ok := strings.Cut(string(packed), " "); err == nil && ok && before == content && exists(a.Path) {
		a.Digest = digest
		return a, nil
	}
	digest, err := image.Write(a.Path, image.Spec{Reference: a.Reference, Program: program, Architecture: runtime.GOARCH})
	if err != nil {
		return Archive{}, err
	}
	a.Digest = digest.String()
	if err := os.WriteFile(note, []byte(content+" "+a.Digest), 0o644); err != nil { //nolint:gosec // a build cache
		return Archive{}, fmt.Errorf("noting what is packed: %w", err)
	}
	return a, nil
}
