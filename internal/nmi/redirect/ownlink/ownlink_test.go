package ownlink

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/mdlayher/netlink"
	nl "github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/redirect/wire"
)

func ours() *state {
	return &state{kind: dummy, alias: mark, up: true, addrs: []netip.Prefix{netip.MustParsePrefix("169.254.1.2/32")}}
}

func with(change func(*state)) *state {
	s := ours()
	change(s)
	return s
}

func TestMissing(t *testing.T) {
	addr, other := netip.MustParseAddr("169.254.1.2"), netip.MustParsePrefix("10.0.0.1/24")
	wide := netip.MustParsePrefix("169.254.1.2/16")
	for name, test := range map[string]struct {
		found node
		want  need
		words string // what the need is called, or the refusal
	}{
		"nothing is there":      {node{}, need{create: true, mark: true, add: true, raise: true}, "missing"},
		"all is there":          {node{link: ours()}, need{}, ""},
		"a bridge serves":       {node{link: with(func(s *state) { s.kind = bridge })}, need{}, ""},
		"down":                  {node{link: with(func(s *state) { s.up = false })}, need{raise: true}, "down"},
		"no address":            {node{link: with(func(s *state) { s.addrs = nil })}, need{add: true}, "without its address"},
		"one more":              {node{link: with(func(s *state) { s.addrs = append(s.addrs, other) })}, need{drop: []netip.Prefix{other}}, "has [10.0.0.1/24]"},
		"another":               {node{link: with(func(s *state) { s.addrs = []netip.Prefix{other} })}, need{drop: []netip.Prefix{other}, add: true}, "has [10.0.0.1/24], without its address"},
		"with a subnet":         {node{link: with(func(s *state) { s.addrs = []netip.Prefix{wide} })}, need{drop: []netip.Prefix{wide}, add: true}, "has [169.254.1.2/16], without its address"},
		"not finished":          {node{link: &state{kind: bridge}}, need{mark: true, add: true, raise: true}, "without its mark, without its address, down"},
		"both have the address": {node{link: ours(), elsewhere: "eth0"}, need{}, ""},

		"of another type":          {node{link: with(func(s *state) { s.kind = "veth" })}, need{}, "of type veth, is not NMI's"},
		"of another mark":          {node{link: with(func(s *state) { s.alias = "mine" })}, need{}, "is not NMI's: delete it (ip link delete aad-pod-id0)"},
		"unmarked with an address": {node{link: with(func(s *state) { s.alias = "" })}, need{}, "is not NMI's"},
		"unmarked and up":          {node{link: &state{kind: dummy, up: true}}, need{}, "is not NMI's"},
		"unmarked of another type": {node{link: &state{kind: "vlan"}}, need{}, "is not NMI's"},
		"the address is elsewhere": {node{elsewhere: "eth0"}, need{}, "link eth0 has the address 169.254.1.2 already: give another one"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := missing(test.found, addr)
			if diff := cmp.Diff(test.want, got, cmp.AllowUnexported(need{}), cmpopts.EquateComparable(netip.Prefix{}), cmpopts.EquateEmpty()); diff != "" {
				t.Error(diff)
			}
			said := got.String()
			if err != nil {
				said = err.Error()
			}
			if _, refused := errors.AsType[*RefusalError](err); refused != (test.want.isZero() && test.words != "") || !strings.Contains(said, test.words) || test.words == "" && said != "" {
				t.Errorf("said %q, want words: %q", said, test.words)
			}
		})
	}
}

// What was mended needs nothing more, from whatever it was.
func TestNothingIsMissingAfterwards(t *testing.T) {
	addr := netip.MustParseAddr("169.254.1.2")
	addrs := [][]netip.Prefix{nil, {netip.MustParsePrefix("169.254.1.2/32")}, {netip.MustParsePrefix("10.0.0.1/8"), netip.MustParsePrefix("169.254.1.2/16")}}
	for _, kind := range []string{dummy, bridge} {
		for _, alias := range []string{"", mark} {
			for _, up := range []bool{false, true} {
				for _, has := range addrs {
					s := state{kind: kind, alias: alias, up: up, addrs: has}
					n, err := missing(node{link: &s}, addr)
					if err != nil {
						continue
					}
					if again, err := missing(node{link: after(s, n, addr)}, addr); err != nil || !again.isZero() {
						t.Errorf("%+v: %s is still missing, %v", s, again, err)
					}
				}
			}
		}
	}
}

// after is the state once everything was done.
func after(s state, n need, addr netip.Addr) *state {
	out := state{kind: s.kind, alias: mark, up: s.up || n.raise}
	for _, has := range s.addrs {
		if !slices.Contains(n.drop, has) {
			out.addrs = append(out.addrs, has)
		}
	}
	if n.add {
		out.addrs = append(out.addrs, netip.PrefixFrom(addr, 32))
	}
	return &out
}

func TestCreate(t *testing.T) {
	for name, test := range map[string]struct {
		answers map[string]error
		asked   string
		want    error
	}{
		"dummy links":     {map[string]error{}, "dummy", nil},
		"bridges alone":   {map[string]error{"dummy": unix.EOPNOTSUPP}, "dummy bridge", nil},
		"neither":         {map[string]error{"dummy": unix.EOPNOTSUPP, "bridge": unix.EOPNOTSUPP}, "dummy bridge", ErrUnsupported},
		"not allowed":     {map[string]error{"dummy": unix.EPERM}, "dummy", unix.EPERM},
		"another made it": {map[string]error{"dummy": unix.EEXIST}, "dummy", unix.EEXIST},
	} {
		t.Run(name, func(t *testing.T) {
			var asked []string
			err := create(func(l nl.Link) error {
				if l.Attrs().Name != Name {
					t.Errorf("added %s", l.Attrs().Name)
				}
				asked = append(asked, l.Type())
				return test.answers[l.Type()]
			})
			if !errors.Is(err, test.want) || strings.Join(asked, " ") != test.asked {
				t.Errorf("asked for %s: %v", asked, err)
			}
		})
	}
	if !strings.Contains(ErrUnsupported.Error(), "modprobe dummy") || !strings.Contains(ErrUnsupported.Error(), "--redirect-target=loopback") {
		t.Errorf("%q does not say what to do", ErrUnsupported)
	}
}

// announced is what rtnetlink tells of a link or an address.
func announced(kind netlink.HeaderType, header int, attribute uint16, value string) netlink.Message {
	return netlink.Message{
		Header: netlink.Header{Type: kind},
		Data:   append(make([]byte, header), wire.Encode(attribute, []byte(value+"\x00"))...),
	}
}

func TestMatters(t *testing.T) {
	const info, addr = unix.SizeofIfInfomsg, unix.SizeofIfAddrmsg
	for name, test := range map[string]struct {
		message netlink.Message
		want    bool
	}{
		"the link comes":     {announced(unix.RTM_NEWLINK, info, unix.IFLA_IFNAME, Name), true},
		"the link goes":      {announced(unix.RTM_DELLINK, info, unix.IFLA_IFNAME, Name), true},
		"an address comes":   {announced(unix.RTM_NEWADDR, addr, unix.IFA_LABEL, Name), true},
		"an address goes":    {announced(unix.RTM_DELADDR, addr, unix.IFA_LABEL, Name), true},
		"another link":       {announced(unix.RTM_NEWLINK, info, unix.IFLA_IFNAME, "veth0"), false},
		"a longer name":      {announced(unix.RTM_NEWLINK, info, unix.IFLA_IFNAME, Name+"0"), false},
		"another's address":  {announced(unix.RTM_DELADDR, addr, unix.IFA_LABEL, "veth0"), false},
		"a route":            {announced(unix.RTM_NEWROUTE, info, unix.IFLA_IFNAME, Name), false},
		"what was lost":      {netlink.Message{}, true},
		"one that is short":  {netlink.Message{Header: netlink.Header{Type: unix.RTM_NEWLINK}, Data: make([]byte, 3)}, true},
		"one that is broken": {netlink.Message{Header: netlink.Header{Type: unix.RTM_NEWADDR}, Data: append(make([]byte, addr), 99, 0, 1, 0)}, true},
	} {
		if got := Matters(test.message); got != test.want {
			t.Errorf("%s: got %t", name, got)
		}
	}
}

func FuzzMatters(f *testing.F) {
	f.Add(uint16(unix.RTM_NEWLINK), announced(0, unix.SizeofIfInfomsg, unix.IFLA_IFNAME, Name).Data)
	f.Add(uint16(unix.RTM_DELADDR), announced(0, unix.SizeofIfAddrmsg, unix.IFA_LABEL, "eth0").Data)
	f.Add(uint16(unix.RTM_NEWADDR), binary.NativeEndian.AppendUint32(make([]byte, 8), 1))
	f.Fuzz(func(t *testing.T, kind uint16, data []byte) {
		m := netlink.Message{Header: netlink.Header{Type: netlink.HeaderType(kind)}, Data: data}
		if !Matters(m) && len(data) < unix.SizeofIfAddrmsg && kind >= unix.RTM_NEWADDR && kind <= unix.RTM_DELADDR {
			t.Errorf("%x of type %d is passed over", data, kind)
		}
	})
}

func TestVanished(t *testing.T) {
	for name, test := range map[string]struct {
		err  error
		want bool
	}{
		"nothing is wrong":       {nil, false},
		"not found":              {fmt.Errorf("finding link: %w", nl.LinkNotFoundError{}), true},
		"deleted while in use":   {fmt.Errorf("configuring link: %w", errors.Join(nil, unix.ENODEV)), true},
		"not allowed":            {fmt.Errorf("configuring link: %w", unix.EPERM), false},
		"somebody else has made": {&RefusalError{"x"}, false},
	} {
		if got := vanished(test.err); got != test.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
