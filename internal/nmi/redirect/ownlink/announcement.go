package ownlink

import (
	"strings"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Matters says whether an announcement of rtnetlink's is about the link or its
// address. The zero message stands for announcements that were lost, which are;
// one that cannot be read may be.
func Matters(m netlink.Message) bool {
	header, attributes := 0, []uint16(nil)
	switch m.Header.Type {
	case 0:
		return true
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		header, attributes = unix.SizeofIfInfomsg, []uint16{unix.IFLA_IFNAME, unix.IFLA_IFALIAS}
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		header, attributes = unix.SizeofIfAddrmsg, []uint16{unix.IFA_LABEL}
	default:
		return false
	}
	if len(m.Data) < header {
		return true
	}
	ad, err := netlink.NewAttributeDecoder(m.Data[header:])
	if err != nil {
		return true
	}
	for ad.Next() {
		for _, kind := range attributes {
			if value := ad.Bytes(); ad.Type() == kind && named(string(value)) {
				return true
			}
		}
	}
	return ad.Err() != nil
}

func named(value string) bool {
	value = strings.TrimRight(value, "\x00")
	return value == Name || value == mark
}
