// Package connected knows who is connected, so that nobody keeps a connection
// that was opened when the address was another's.
//
// It must not decide when that is.
package connected

import (
	"net"
	"net/netip"
	"sync"
)

// Set is the connections of one listener, by the address of the other side. It is
// safe for concurrent use; its zero value is ready.
type Set struct {
	mu   sync.Mutex // protects all following fields
	open map[netip.Addr]map[*connection]struct{}
}

// Listener knows the connections that it accepts.
func (s *Set) Listener(inner net.Listener) net.Listener {
	return &listener{Listener: inner, set: s}
}

type listener struct {
	net.Listener
	set *Set
}

// Accept returns the next connection.
func (l *listener) Accept() (net.Conn, error) {
	accepted, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return l.set.add(accepted), nil
}

func (s *Set) add(accepted net.Conn) net.Conn {
	remote, ok := accepted.RemoteAddr().(*net.TCPAddr)
	if !ok {
		return accepted
	}
	added := &connection{Conn: accepted, of: s, remote: remote.AddrPort().Addr().Unmap()}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open == nil {
		s.open = map[netip.Addr]map[*connection]struct{}{}
	}
	if s.open[added.remote] == nil {
		s.open[added.remote] = map[*connection]struct{}{}
	}
	s.open[added.remote][added] = struct{}{}
	return added
}

// Drop ends the connections of an address at once: what was written to them and
// has not left goes nowhere. It returns how many there were.
func (s *Set) Drop(address netip.Addr) int {
	s.mu.Lock()
	dropped := s.open[address]
	delete(s.open, address)
	s.mu.Unlock()
	for d := range dropped {
		if tcp, ok := d.Conn.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0) // it is closed either way
		}
		_ = d.Conn.Close() // its reader is told
	}
	return len(dropped)
}

func (s *Set) forget(closed *connection) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open[closed.remote], closed)
	if len(s.open[closed.remote]) == 0 {
		delete(s.open, closed.remote)
	}
}

type connection struct {
	net.Conn
	of     *Set
	remote netip.Addr
}

// Close closes the connection.
func (c *connection) Close() error {
	c.of.forget(c)
	return c.Conn.Close()
}
