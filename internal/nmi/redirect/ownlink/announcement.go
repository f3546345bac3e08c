package ownlink

import (
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Matters says whether an announcement of rtnetlink's is about the link or its
// address. The zero message stands for announcements that were lost, which are;
// one that cannot be read may be.
func Matters(m netlink.Message) bool {
	var header int
	var name uint16
	switch m.Header.Type {
	case 0:
		return true
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		header, name = unix.SizeofIfInfomsg, unix.IFLA_IFNAME
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		header, name = unix.SizeofIfAddrmsg, unix.IFA_LABEL
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
		if ad.Type() == name && ad.String() == Name {
			return true
		}
	}
	return ad.Err() != nil
}
