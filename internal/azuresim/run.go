package azuresim

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/model"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/pki"
)

// shutdownGrace is how long open requests may go on when the simulator ends: its
// answers take milliseconds, and idle HTTP/2 connections would be waited for.
const shutdownGrace = 200 * time.Millisecond

// Listeners are where a simulator serves. A nil one is not served.
type Listeners struct {
	HTTPS, IMDS, Control net.Listener
}

// Run serves until ctx is done, or until a listener breaks, and closes all
// listeners. The end of ctx is no error.
func (s *Simulator) Run(ctx context.Context, l Listeners) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, server := range []struct {
		name     string
		listener net.Listener
		handler  http.Handler
		tls      bool
	}{
		{"https", l.HTTPS, s.HTTPS(), true},
		{"imds", l.IMDS, s.IMDS(), false},
		{"control", l.Control, s.Control(), false},
	} {
		if server.listener == nil {
			continue
		}
		h := s.server(ctx, server.handler)
		s.log.Info("listening", "surface", server.name, "address", server.listener.Addr().String())
		group.Go(func() error {
			if server.tls {
				return ended(h.ServeTLS(server.listener, "", ""))
			}
			return ended(h.Serve(server.listener))
		})
		group.Go(func() error { return shutdown(ctx, h) })
	}
	if err := group.Wait(); err != nil {
		return fmt.Errorf("serving: %w", err)
	}
	return nil
}

func (s *Simulator) server(ctx context.Context, handler http.Handler) *http.Server {
	return &http.Server{
		Handler: handler, TLSConfig: s.TLSConfig(),
		ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10,
		ErrorLog:    slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
		BaseContext: func(net.Listener) context.Context { return ctx }, // long polls end with ctx
	}
}

func ended(err error) error {
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

func shutdown(ctx context.Context, h *http.Server) error {
	<-ctx.Done()
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownGrace)
	defer cancel()
	if err := h.Shutdown(grace); err != nil {
		return h.Close() // whoever is still there is cut off
	}
	return nil
}

// Run makes a simulator from o, listens where o says and serves until ctx is
// done. The listeners come first: a start that finds its ports taken leaves the
// CA files of the one that has them alone.
func Run(ctx context.Context, o Options) error {
	log := slog.New(slog.NewTextHandler(o.Stderr, &slog.HandlerOptions{Level: o.LogLevel}))
	listeners, err := o.listen(ctx)
	if err != nil {
		return err
	}
	defer listeners.close()
	config, err := o.config(log)
	if err != nil {
		return err
	}
	sim, err := New(config)
	if err != nil {
		return err
	}
	return sim.Run(ctx, listeners)
}

func (o Options) config(log *slog.Logger) (Config, error) {
	config := Config{Settings: o.settings(), TokenLifetime: o.TokenLifetime, JournalLimit: o.JournalLimit, Log: log}
	if o.StateFile != "" {
		text, err := os.ReadFile(o.StateFile)
		if err != nil {
			return config, fmt.Errorf("reading --state: %w", err)
		}
		if config.State, err = model.Parse(text); err != nil {
			return config, fmt.Errorf("reading --state %s: %w", o.StateFile, err)
		}
	}
	if o.Tenant != "" {
		config.State.Tenant = o.Tenant
	}
	var err error
	config.Authority, err = pki.Open(o.CACert, o.CAKey)
	return config, err
}

// listen opens all listeners or none.
func (o Options) listen(ctx context.Context) (Listeners, error) {
	var l Listeners
	var open net.ListenConfig
	for _, where := range []struct {
		flag, address string
		into          *net.Listener
	}{
		{"https-address", o.HTTPSAddress, &l.HTTPS}, {"imds-address", o.IMDSAddress, &l.IMDS}, {"control-address", o.ControlAddress, &l.Control},
	} {
		listener, err := open.Listen(ctx, "tcp", where.address)
		if err != nil {
			l.close()
			return Listeners{}, fmt.Errorf("listening at --%s: %w", where.flag, err)
		}
		*where.into = listener
	}
	return l, nil
}

func (l Listeners) close() {
	for _, listener := range []net.Listener{l.HTTPS, l.IMDS, l.Control} {
		if listener != nil {
			_ = listener.Close() // already closed if it was served, and else nothing can be lost
		}
	}
}
