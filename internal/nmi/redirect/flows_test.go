package redirect

import (
	"errors"
	"fmt"
	"net"
	"testing"

	"golang.org/x/sys/unix"

	nl "github.com/vishvananda/netlink"
)

func TestAstray(t *testing.T) {
	config, err := Config{}.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	const tcp, udp = unix.IPPROTO_TCP, unix.IPPROTO_UDP
	const imds, nmi = "169.254.169.254", "127.0.0.1"
	tuple := func(protocol uint8, to string, port uint16) nl.IPTuple {
		return nl.IPTuple{Protocol: protocol, DstIP: net.ParseIP(to), DstPort: port, SrcIP: net.ParseIP("10.244.0.2"), SrcPort: 40000}
	}
	answered := func(from string, port uint16) nl.IPTuple {
		return nl.IPTuple{Protocol: tcp, SrcIP: net.ParseIP(from), SrcPort: port, DstIP: net.ParseIP("10.244.0.2"), DstPort: 40000}
	}
	for name, test := range map[string]struct {
		forward, reverse nl.IPTuple
		want             bool
	}{
		"to the service itself":       {tuple(tcp, imds, 80), answered(imds, 80), true},
		"to a rival":                  {tuple(tcp, imds, 80), answered("10.0.0.1", 80), true},
		"to another port of NMI's":    {tuple(tcp, imds, 80), answered(nmi, 80), true},
		"to NMI":                      {tuple(tcp, imds, 80), answered(nmi, 2579), false},
		"another protocol":            {tuple(udp, imds, 80), answered(imds, 80), false},
		"another port":                {tuple(tcp, imds, 443), answered(imds, 443), false},
		"another address":             {tuple(tcp, "10.0.0.1", 80), answered("10.0.0.1", 80), false},
		"addresses that are not told": {nl.IPTuple{Protocol: tcp, DstPort: 80}, nl.IPTuple{}, false},
	} {
		t.Run(name, func(t *testing.T) {
			if got := astray(config).MatchConntrackFlow(&nl.ConntrackFlow{Forward: test.forward, Reverse: test.reverse}); got != test.want {
				t.Errorf("got %v, want %v", got, test.want)
			}
		})
	}
}

func TestExplain(t *testing.T) {
	for errno, want := range map[unix.Errno]error{
		unix.EPERM: ErrCapability, unix.EACCES: ErrCapability,
		unix.EPROTONOSUPPORT: ErrKernel, unix.EOPNOTSUPP: ErrKernel, unix.EINVAL: ErrKernel, unix.ENOENT: ErrKernel,
	} {
		err := explain(fmt.Errorf("asking: %w", errno))
		if !errors.Is(err, want) || !errors.Is(err, errno) {
			t.Errorf("%v becomes %v, want both it and: %v", errno, err, want)
		}
	}
	if err := explain(unix.ENOBUFS); err != unix.ENOBUFS { //nolint:errorlint // the same error, not one like it
		t.Errorf("ENOBUFS becomes %v", err)
	}
}
