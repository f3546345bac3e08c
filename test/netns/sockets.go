package netns

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
)

// Listen is [net.ListenConfig.Listen] inside the namespace. The listener may be
// used from anywhere. The address must be an IP address: nothing resolves names
// in a namespace.
func (n *NS) Listen(ctx context.Context, network, address string) (net.Listener, error) {
	var l net.Listener
	err := n.Do(func() (err error) {
		l, err = new(net.ListenConfig).Listen(ctx, network, address)
		return err
	})
	return l, err
}

// ListenPacket is [net.ListenConfig.ListenPacket] inside the namespace, as
// Listen.
func (n *NS) ListenPacket(ctx context.Context, network, address string) (net.PacketConn, error) {
	var c net.PacketConn
	err := n.Do(func() (err error) {
		c, err = new(net.ListenConfig).ListenPacket(ctx, network, address)
		return err
	})
	return c, err
}

// DialContext is [net.Dialer.DialContext] inside the namespace, so that it can
// serve an http.Transport. The connection may be used from anywhere.
func (n *NS) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	var c net.Conn
	err := n.Do(func() (err error) {
		c, err = new(net.Dialer).DialContext(ctx, network, address)
		return err
	})
	return c, err
}

// Start is [exec.Cmd.Start] inside the namespace. The caller waits for the
// command; Close kills it if it still runs.
func (n *NS) Start(cmd *exec.Cmd) error {
	if err := n.Do(cmd.Start); err != nil {
		return err
	}
	return n.onClose(closerFunc(func() error { return end(cmd.Process) }))
}

// end kills a process and reaps it, whoever else may be waiting for it.
func end(p *os.Process) error {
	if err := p.Kill(); err != nil {
		if errors.Is(err, os.ErrProcessDone) {
			return nil
		}
		return err
	}
	_, _ = p.Wait() // its owner may have been first
	return nil
}
