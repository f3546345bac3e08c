package redirect

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/mdlayher/netlink"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/redirect/ownlink"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/redirect/wire"
)

// Multicast groups of the kernel on which changes are announced.
const (
	groupNFTables = unix.NFNLGRP_NFTABLES
	groupLink     = unix.RTNLGRP_LINK
	groupAddress  = unix.RTNLGRP_IPV4_IFADDR
)

// Watch calls changed once it listens, and then for each change that may have
// damaged what Ensure installs, until ctx ends or it can listen no longer. Those
// are changes of our tables, NAT chains that may come before ours and, where links
// must let packets through to loopback, changes of links, or of NMI's own.
func (n *NFTables) Watch(ctx context.Context, changed func()) error {
	rules, err := wire.Subscribe(unix.NETLINK_NETFILTER, n.config.NetNS, groupNFTables)
	if err != nil {
		return explain(err)
	}
	defer rules.Close()
	listening := []listener{{conn: rules, matters: n.mattersToRules}}
	if matters := n.mattersOfLinks(); matters != nil {
		links, err := wire.Subscribe(unix.NETLINK_ROUTE, n.config.NetNS, groupLink, groupAddress)
		if err != nil {
			return denied(err)
		}
		defer links.Close()
		listening = append(listening, listener{conn: links, matters: matters})
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

// mattersToRules says whether an announcement is about one of our tables or a
// rival of it. The zero message stands for announcements that were lost.
func (n *NFTables) mattersToRules(m netlink.Message) bool {
	about := wire.Describe(m)
	if about.Rival {
		n.contested.Store(true)
	}
	return about.Rival || about.Ours
}

// mattersOfLinks says which announcements of links matter; nil if none does.
func (n *NFTables) mattersOfLinks() func(netlink.Message) bool {
	switch {
	case n.config.Link:
		return ownlink.Matters
	case n.config.spec().Loopback():
		return mattersToLinks
	}
	return nil
}

// mattersToLinks lets through what is said of links that are there: new ones,
// and ones that were changed.
func mattersToLinks(m netlink.Message) bool {
	return m.Header.Type == unix.RTM_NEWLINK || m.Header.Type == 0
}
