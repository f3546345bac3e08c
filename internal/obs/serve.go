package obs

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"
)

// Serve answers with handler on the listener until ctx ends, then lets requests
// in flight finish for up to drain, and cuts off the rest. It returns nil after a
// clean end. Timeouts are set, so that a slow client holds no connection for ever.
func Serve(ctx context.Context, listener net.Listener, handler http.Handler, drain time.Duration) error {
	server := &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		IdleTimeout:       60 * time.Second,
		MaxHeaderBytes:    16 << 10,
	}
	done := make(chan error, 1)
	go func() {
		<-ctx.Done()
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), drain)
		defer cancel()
		err := server.Shutdown(stop)
		if err != nil {
			_ = server.Close() // what is left is cut off, which the error says
		}
		done <- err
	}()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serving on %s: %w", listener.Addr(), err)
	}
	if err := <-done; err != nil {
		return fmt.Errorf("draining %s: %w", listener.Addr(), err)
	}
	return nil
}

// Listen opens a TCP listener and, when the port is taken, says which flag
// chooses another.
func Listen(ctx context.Context, address, flag string) (net.Listener, error) {
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("listening on %s: %w (choose another address with --%s)", address, err, flag)
	}
	return listener, nil
}
