package loopback

import (
	"encoding/binary"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/redirect/wire"
)

// linkMessage is what the kernel tells of a link: index 5, with a setting.
func linkMessage(flags uint32, conf []uint32) []byte {
	data := make([]byte, sizeofIfInfomsg)
	binary.NativeEndian.PutUint32(data[4:], 5)
	binary.NativeEndian.PutUint32(data[8:], flags)
	data = slices.Concat(data, wire.Encode(unix.IFLA_IFNAME, []byte("eth0\x00")))
	if conf == nil {
		return data
	}
	var b []byte
	for _, v := range conf {
		b = binary.NativeEndian.AppendUint32(b, v)
	}
	return slices.Concat(data, wire.Nested(unix.IFLA_AF_SPEC, wire.Nested(unix.AF_INET, wire.Encode(unix.IFLA_INET_CONF, b))))
}

func TestDecodeLink(t *testing.T) {
	on := make([]uint32, 32)
	on[25] = 1
	others := make([]uint32, 32)
	for i := range others {
		others[i] = 1
	}
	others[25] = 0
	for name, test := range map[string]struct {
		data []byte
		want link
	}{
		"on":                 {linkMessage(unix.IFF_UP, on), link{index: 5, name: "eth0", inet: true, routeLocalnet: true}},
		"all else is on":     {linkMessage(unix.IFF_UP, others), link{index: 5, name: "eth0", inet: true}},
		"lo":                 {linkMessage(unix.IFF_LOOPBACK, others), link{index: 5, name: "eth0", inet: true, loopback: true}},
		"no IPv4":            {linkMessage(unix.IFF_UP, nil), link{index: 5, name: "eth0"}},
		"an old kernel's":    {linkMessage(unix.IFF_UP, on[:25]), link{index: 5, name: "eth0"}},
		"exactly that many":  {linkMessage(unix.IFF_UP, on[:26]), link{index: 5, name: "eth0", inet: true, routeLocalnet: true}},
		"no settings at all": {linkMessage(unix.IFF_UP, []uint32{}), link{index: 5, name: "eth0"}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := decodeLink(test.data)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, got, cmp.AllowUnexported(link{})); diff != "" {
				t.Error(diff)
			}
		})
	}
	if _, err := decodeLink(make([]byte, 15)); err == nil {
		t.Error("a message that is too short is read")
	}
}

func TestDiffering(t *testing.T) {
	off, on := link{name: "off", inet: true}, link{name: "on", inet: true, routeLocalnet: true}
	lo, other := link{name: "lo", inet: true, loopback: true}, link{name: "other"}
	all := []link{off, on, lo, other}
	for want, got := range map[string][]link{"off": differing(all, true), "on": differing(all, false)} {
		if len(got) != 1 || got[0].name != want {
			t.Errorf("got %+v, want %s", got, want)
		}
	}
}

func FuzzDecodeLink(f *testing.F) {
	f.Add(linkMessage(0, make([]uint32, 33)))
	f.Fuzz(func(t *testing.T, data []byte) {
		if l, err := decodeLink(data); err == nil && l.routeLocalnet && !l.inet {
			t.Errorf("%+v", l)
		}
	})
}
