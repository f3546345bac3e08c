package caller

import (
	"net"
	"net/netip"
	"sync"
)

// Connections knows who is connected, so that nobody keeps a connection that was
// opened when the address was another's. It is safe for concurrent use; its zero
// value is ready.
type Connections struct {
	mu   sync.Mutex // protects all following fields
	open map[netip.Addr]map[*connection]struct{}
}

// Listener knows the connections that it accepts.
func (c *Connections) Listener(inner net.Listener) net.Listener {
	return &knownListener{Listener: inner, connections: c}
}

type knownListener struct {
	net.Listener
	connections *Connections
}

// Accept returns the next connection.
func (l *knownListener) Accept() (net.Conn, error) {
	accepted, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return l.connections.add(accepted), nil
}

func (c *Connections) add(accepted net.Conn) net.Conn {
	remote, ok := accepted.RemoteAddr().(*net.TCPAddr)
	if !ok {
		return accepted
	}
	added := &connection{Conn: accepted, of: c, remote: remote.AddrPort().Addr().Unmap()}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.open == nil {
		c.open = map[netip.Addr]map[*connection]struct{}{}
	}
	if c.open[added.remote] == nil {
		c.open[added.remote] = map[*connection]struct{}{}
	}
	c.open[added.remote][added] = struct{}{}
	return added
}

// Drop ends the connections of an address at once: what was written to them and
// has not left goes nowhere. It returns how many there were.
func (c *Connections) Drop(address netip.Addr) int {
	c.mu.Lock()
	dropped := c.open[address]
	delete(c.open, address)
	c.mu.Unlock()
	for d := range dropped {
		if tcp, ok := d.Conn.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0) // it is closed either way
		}
		_ = d.Conn.Close() // its reader is told
	}
	return len(dropped)
}

func (c *Connections) forget(closed *connection) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.open[closed.remote], closed)
	if len(c.open[closed.remote]) == 0 {
		delete(c.open, closed.remote)
	}
}

type connection struct {
	net.Conn
	of     *Connections
	remote netip.Addr
}

// Close closes the connection.
func (c *connection) Close() error {
	c.of.forget(c)
	return c.Conn.Close()
}
