package redirect

import (
	"context"
	"encoding/binary"
	"errors"
	"os"
	"slices"
	"testing"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/redirect/ruleset"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/redirect/wire"
)

// script is a netlink socket that receives what is written down, one entry at
// a time, and then fails with unix.EIO.
type script struct {
	received []received
	next     int
}

type received struct {
	messages []netlink.Message
	err      error
}

func (s *script) Receive() ([]netlink.Message, error) {
	if s.next == len(s.received) {
		return nil, os.NewSyscallError("recvmsg", unix.EIO)
	}
	r := s.received[s.next]
	s.next++
	return r.messages, r.err
}

func (*script) Close() error                         { return nil }
func (*script) Send(netlink.Message) error           { return unix.EOPNOTSUPP }
func (*script) SendMessages([]netlink.Message) error { return unix.EOPNOTSUPP }

// announced is what the kernel tells of a table in the family ip.
func announced(kind int, table string, more ...byte) netlink.Message {
	return netlink.Message{
		Header: netlink.Header{Type: netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | kind)},
		Data:   slices.Concat([]byte{unix.NFPROTO_IPV4, 0, 0, 0}, wire.Encode(unix.NFTA_TABLE_NAME, []byte(table+"\x00")), more),
	}
}

func TestListen(t *testing.T) {
	ours := announced(unix.NFT_MSG_DELTABLE, ruleset.MainTable)
	foreign := announced(unix.NFT_MSG_DELTABLE, "other")
	priority := int32(ruleset.Priority)
	rival := announced(unix.NFT_MSG_NEWCHAIN, "other", wire.Nested(unix.NFTA_CHAIN_HOOK,
		wire.Encode(unix.NFTA_HOOK_PRIORITY, binary.BigEndian.AppendUint32(nil, uint32(priority))))...)
	end := announced(unix.NFT_MSG_NEWGEN, "")
	for name, test := range map[string]struct {
		received  []received
		reports   int
		contested bool
	}{
		"nothing":                        {nil, 0, false},
		"ours":                           {[]received{{messages: []netlink.Message{ours, end}}}, 1, false},
		"somebody else's":                {[]received{{messages: []netlink.Message{foreign, end}}}, 0, false},
		"ours among others, in one read": {[]received{{messages: []netlink.Message{foreign, ours, ours, end}}}, 1, false},
		"ours twice":                     {[]received{{messages: []netlink.Message{ours}}, {messages: []netlink.Message{ours}}}, 2, false},
		"a rival behind ours":            {[]received{{messages: []netlink.Message{ours, rival}}}, 1, true},
		"more than the socket could hold, which does not end it": {
			[]received{{err: os.NewSyscallError("recvmsg", unix.ENOBUFS)}, {messages: []netlink.Message{ours}}}, 2, true,
		},
	} {
		t.Run(name, func(t *testing.T) {
			n, err := New(Config{})
			if err != nil {
				t.Fatal(err)
			}
			n.contested.Store(false)
			conn := netlink.NewConn(&script{received: test.received}, 1)
			reports := 0
			err = listen(t.Context(), []listener{{conn: conn, matters: n.mattersToRules}}, func() { reports++ })
			if !errors.Is(err, unix.EIO) {
				t.Errorf("got %v, want the socket's failure", err)
			}
			if reports != test.reports || n.contested.Load() != test.contested {
				t.Errorf("%d reports, contested %v, want %d, %v", reports, n.contested.Load(), test.reports, test.contested)
			}
		})
	}
}

func TestListenEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	conn := netlink.NewConn(&script{}, 1)
	err := listen(ctx, []listener{{conn: conn, matters: mattersToLinks}}, func() { t.Error("reported") })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want %v", err, context.Canceled)
	}
}

func TestMattersToLinks(t *testing.T) {
	for kind, want := range map[netlink.HeaderType]bool{
		unix.RTM_NEWLINK: true, 0: true, unix.RTM_DELLINK: false, unix.RTM_NEWADDR: false,
	} {
		if got := mattersToLinks(netlink.Message{Header: netlink.Header{Type: kind}}); got != want {
			t.Errorf("type %d: got %v, want %v", kind, got, want)
		}
	}
}
