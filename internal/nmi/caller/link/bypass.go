package link

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// maxLooked bounds how many links are asked for their programs: those of pods are
// all of one making.
const maxLooked = 8

// Handles of traffic control: of a link's ingress hook.
const clsactIngress = 0xfffffff2

// sizeofTrafficMessage is the length of struct tcmsg in bytes.
const sizeofTrafficMessage = 20

// Bypasses names what can take pods' packets past the rules of netfilter, as far
// as the node's links show: that it does is not known.
func (t *Table) Bypasses() ([]string, error) {
	devices, err := t.Devices()
	if err != nil {
		return nil, err
	}
	slices.SortFunc(devices, func(a, b Device) int { return b.Index - a.Index })
	out := signs(devices)
	looked := 0
	for _, device := range devices {
		if !own(device.Kind) || looked == maxLooked {
			continue
		}
		looked++
		programs, err := t.programs(device.Index)
		if err != nil {
			return nil, err
		}
		if programs > 0 {
			out = append(out, fmt.Sprintf("BPF programs take the packets that come in from link %s first", device.Name))
			break
		}
	}
	return out, nil
}

// signs are what can be told of links without asking further.
func signs(devices []Device) []string {
	var out []string
	for _, sign := range []struct {
		says string
		is   func(Device) bool
	}{
		{"%s is Cilium's, whose BPF host routing, if it is on, does not ask netfilter", func(d Device) bool { return d.Name == "cilium_host" }},
		{"%s is a netkit link, made for BPF programs that route past netfilter", func(d Device) bool { return d.Kind == "netkit" }},
		{"an XDP program takes the packets that come in from link %s first", func(d Device) bool { return d.XDP && own(d.Kind) }},
		{"%s is of kind macvlan: what pods send over such links does not come by the node", func(d Device) bool { return strings.HasPrefix(d.Kind, "macvlan") }},
		{"%s is of kind ipvlan: what pods send over such links may not come by the node", func(d Device) bool { return d.Kind == "ipvlan" }},
	} {
		if i := slices.IndexFunc(devices, sign.is); i >= 0 {
			out = append(out, fmt.Sprintf(sign.says, devices[i].Name))
		}
	}
	return out
}

// programs counts the BPF programs at the ingress of a link.
func (t *Table) programs(link int) (int, error) {
	data := make([]byte, sizeofTrafficMessage)
	binary.NativeEndian.PutUint32(data[4:], uint32(link)) //nolint:gosec // never negative
	binary.NativeEndian.PutUint32(data[12:], clsactIngress)
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ask == nil {
		return 0, errClosed
	}
	answers, err := t.ask.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.RTM_GETTFILTER, Flags: netlink.Request | netlink.Dump}, Data: data,
	})
	switch {
	case errors.Is(err, unix.ENODEV), errors.Is(err, unix.EINVAL), errors.Is(err, unix.EOPNOTSUPP):
		return 0, nil // the link is gone, or has no such hook
	case err != nil:
		return 0, fmt.Errorf("listing the programs of a link: %w", err)
	}
	count := 0
	for _, answer := range answers {
		if isProgram(answer.Data) {
			count++
		}
	}
	return count, nil
}

// tcaKind is TCA_KIND of linux/rtnetlink.h.
const tcaKind = 1

func isProgram(data []byte) bool {
	if len(data) < sizeofTrafficMessage {
		return false
	}
	found := false
	err := attributes(data[sizeofTrafficMessage:], func(ad *netlink.AttributeDecoder) {
		if ad.Type() == tcaKind {
			found = ad.String() == "bpf"
		}
	})
	return found && err == nil
}
