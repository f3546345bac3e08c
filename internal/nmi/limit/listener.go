package limit

import (
	"net"
	"net/netip"
	"sync"
)

// Listener bounds how many connections one caller has open: those beyond are
// closed as soon as they are accepted.
func (l *Limiter) Listener(inner net.Listener) net.Listener {
	return &listener{Listener: inner, limiter: l}
}

type listener struct {
	net.Listener
	limiter *Limiter
}

// Accept returns the next connection of a caller that may have one more.
func (l *listener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		release, ok := l.limiter.open(c)
		if ok {
			return &conn{Conn: c, release: sync.OnceFunc(release)}, nil
		}
		_ = c.Close() // it has carried nothing
	}
}

// open counts a connection; false if there are too many.
func (l *Limiter) open(c net.Conn) (release func(), ok bool) {
	remote := addressOf(c)
	l.mu.Lock()
	defer l.mu.Unlock()
	from := l.caller(remote)
	if from.connections >= l.options.Connections {
		l.options.Observe(Connections)
		return nil, false
	}
	from.connections++
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		from.connections--
	}, true
}

// addressOf returns the address of the other side as Enter is given it.
func addressOf(c net.Conn) netip.Addr {
	remote, _ := c.RemoteAddr().(*net.TCPAddr)
	if remote == nil {
		return netip.Addr{}
	}
	return remote.AddrPort().Addr().Unmap()
}

// conn gives its place back when it is closed.
type conn struct {
	net.Conn
	release func()
}

// Close closes the connection.
func (c *conn) Close() error {
	c.release()
	return c.Conn.Close()
}
