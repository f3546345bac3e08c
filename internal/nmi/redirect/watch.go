package redirect

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// Multicast groups of the kernel on which changes are announced.
const (
	groupNFTables = unix.NFNLGRP_NFTABLES
	groupLink     = unix.RTNLGRP_LINK
)

var _ Watcher = (*NFTables)(nil)

// Watch implements [Watcher]: it reports changes of our tables, NAT chains that
// may come before ours and, where links must let packets through to loopback,
// changes of links.
func (n *NFTables) Watch(ctx context.Context, changed func()) error {
	rules, err := subscribe(unix.NETLINK_NETFILTER, n.config.NetNS, groupNFTables)
	if err != nil {
		return explain(err)
	}
	defer rules.Close()
	listening := []listener{{conn: rules, matters: n.mattersToRules}}
	if n.config.loopback() {
		links, err := subscribe(unix.NETLINK_ROUTE, n.config.NetNS, groupLink)
		if err != nil {
			return denied(err)
		}
		defer links.Close()
		listening = append(listening, listener{conn: links, matters: mattersToLinks})
	}
	n.contested.Store(true) // chains may have come unseen
	changed()
	return listen(ctx, listening, changed)
}

// listener is a subscription and what it is for.
type listener struct {
	conn    *netlink.Conn
	matters func(netlink.Message) bool
}

// listen calls changed until ctx ends or a subscription fails.
func listen(ctx context.Context, listening []listener, changed func()) error {
	group, ctx := errgroup.WithContext(ctx)
	var mu sync.Mutex // changed is called by one goroutine at a time
	for _, l := range listening {
		stop := context.AfterFunc(ctx, func() { _ = l.conn.Close() })
		defer stop()
		group.Go(func() error {
			for {
				matters, err := l.receive()
				if ctx.Err() != nil {
					return ctx.Err()
				}
				if err != nil {
					return err
				}
				if matters {
					mu.Lock()
					changed()
					mu.Unlock()
				}
			}
		})
	}
	return group.Wait()
}

// receive waits for announcements and says whether one of them matters. Lost
// ones do: nobody knows what they were.
func (l listener) receive() (bool, error) {
	messages, err := l.conn.Receive()
	if errors.Is(err, unix.ENOBUFS) {
		return l.matters(netlink.Message{}), nil
	}
	if err != nil {
		return false, fmt.Errorf("receiving announcements: %w", err)
	}
	matters := false
	for _, m := range messages {
		matters = l.matters(m) || matters
	}
	return matters, nil
}

func subscribe(family, namespace int, group uint32) (*netlink.Conn, error) {
	conn, err := dial(family, namespace)
	if err != nil {
		return nil, err
	}
	if err := conn.JoinGroup(group); err != nil {
		return nil, errors.Join(fmt.Errorf("joining netlink group %d: %w", group, err), conn.Close())
	}
	return conn, nil
}

// mattersToRules says whether an announcement is about one of our tables or a
// rival of it. The zero message stands for announcements that were lost.
func (n *NFTables) mattersToRules(m netlink.Message) bool {
	about := describe(m)
	if about.rival {
		n.contested.Store(true)
	}
	return about.rival || about.ours
}

// subject is what an announcement is about.
type subject struct{ ours, rival bool }

// describe reads an announcement. One that cannot be read may be about
// anything.
func describe(m netlink.Message) subject {
	const subsystem, kind = 0xff00, 0x00ff
	switch {
	case m.Header.Type&subsystem>>8 != unix.NFNL_SUBSYS_NFTABLES:
		return subject{ours: true, rival: true}
	case m.Header.Type&kind == unix.NFT_MSG_NEWGEN: // ends each transaction, names no table
		return subject{}
	}
	// In tables, chains, rules, sets, elements and objects alike, the first
	// attribute is the name of the table.
	var in string
	c := chain{}
	err := eachAttr([]netlink.Message{m}, func(ad *netlink.AttributeDecoder) {
		switch ad.Type() {
		case unix.NFTA_TABLE_NAME:
			in = ad.String()
		case unix.NFTA_CHAIN_HOOK:
			if m.Header.Type&kind == unix.NFT_MSG_NEWCHAIN {
				ad.Nested(func(hook *netlink.AttributeDecoder) error {
					c.hook, c.priority = decodeHook(hook)
					return nil
				})
			}
		}
	})
	if err != nil {
		return subject{ours: true, rival: true}
	}
	ours := isOurs(nftables.TableFamily(m.Data[0]), in)
	return subject{
		ours:  ours,
		rival: !ours && c.hook == *nftables.ChainHookPrerouting && c.priority == natPriority,
	}
}

// mattersToLinks lets through what is said of links that are there: new ones,
// and ones that were changed.
func mattersToLinks(m netlink.Message) bool {
	return m.Header.Type == unix.RTM_NEWLINK || m.Header.Type == 0
}
