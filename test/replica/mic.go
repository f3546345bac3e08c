package replica

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// MIC is a running controller.
type MIC struct {
	// Probe and Metrics are the URLs of what it serves.
	Probe, Metrics string

	cmd  *exec.Cmd
	log  string
	done chan struct{} // closed when it has ended
}

// Options say what runs, and in which world.
type Options struct {
	// Program is the path of mic.
	Program string
	// Name is of the log, in the folder of the cluster.
	Name    string
	Cluster *Cluster
	Azure   *Azure
	// Flags are added to those of the chart.
	Flags []string
}

// Start starts MIC as the chart does, with the shipped rights, and waits for
// nothing.
func Start(ctx context.Context, o Options) (*MIC, error) {
	kubeconfig, err := o.Cluster.kubeconfig(ctx)
	if err != nil {
		return nil, err
	}
	ports, err := freePorts(ctx, 2)
	if err != nil {
		return nil, err
	}
	m := &MIC{
		Probe: "http://127.0.0.1:" + ports[0], Metrics: "http://127.0.0.1:" + ports[1] + "/metrics",
		log: filepath.Join(o.Cluster.dir, o.Name+".log"), done: make(chan struct{}),
	}
	out, err := os.Create(m.log)
	if err != nil {
		return nil, fmt.Errorf("opening MIC's log: %w", err)
	}
	defer out.Close()
	m.cmd = exec.CommandContext(context.WithoutCancel(ctx), o.Program, append([]string{ //nolint:gosec // the program that is tried
		"--kubeconfig=" + kubeconfig, "--cloudconfig=" + o.Azure.cloudConfig(), "--http-probe-port=" + ports[0], "--prometheus-port=" + ports[1],
	}, o.Flags...)...)
	m.cmd.Env = []string{"MIC_POD_NAMESPACE=" + micNamespace, "HTTPS_PROXY=http://" + o.Azure.proxy, "SSL_CERT_FILE=" + o.Azure.caFile()}
	m.cmd.Stdout, m.cmd.Stderr = out, out
	if err := m.cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting MIC: %w (run make build)", err)
	}
	go func() {
		defer close(m.done)
		_ = m.cmd.Wait() // its log says why it ended
	}()
	return m, nil
}

// AwaitLead waits until it leads.
func (m *MIC) AwaitLead(ctx context.Context) error {
	return m.Await(ctx, "MIC to lead", func() (bool, error) {
		body, err := m.Get(ctx, m.Probe+"/healthz")
		return body == "Active", err
	})
}

// Kill ends MIC at once, wherever it is.
func (m *MIC) Kill() {
	_ = m.cmd.Process.Kill()
	<-m.done
}

// Freeze stops MIC's time until it is thawed or ended.
func (m *MIC) Freeze() error { return m.cmd.Process.Signal(syscall.SIGSTOP) }

// Thaw lets a frozen MIC go on.
func (m *MIC) Thaw() error { return m.cmd.Process.Signal(syscall.SIGCONT) }

// Done is closed when MIC has ended.
func (m *MIC) Done() <-chan struct{} { return m.done }

func freePorts(ctx context.Context, n int) ([]string, error) {
	var out []string
	for range n {
		var open net.ListenConfig
		l, err := open.Listen(ctx, "tcp", "127.0.0.1:0")
		if err != nil {
			return nil, fmt.Errorf("looking for a free port: %w", err)
		}
		defer l.Close()
		_, port, _ := net.SplitHostPort(l.Addr().String())
		out = append(out, port)
	}
	return out, nil
}

// Stop ends MIC as a kubelet does.
func (m *MIC) Stop() error {
	if err := m.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stopping MIC: %w", err)
	}
	select {
	case <-m.done:
	case <-time.After(30 * time.Second):
		_ = m.cmd.Process.Kill()
		<-m.done
	}
	return nil
}

// Await asks four times a second until check says true. MIC's own end is one of
// the reasons to stop. A check that fails is tried again.
func (m *MIC) Await(ctx context.Context, what string, check func() (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	ticker := time.NewTicker(250 * time.Millisecond)
	defer ticker.Stop()
	for {
		ok, err := check()
		if ok {
			return nil
		}
		select {
		case <-ticker.C:
		case <-m.done:
			text, _ := os.ReadFile(m.log)
			return fmt.Errorf("waiting for %s: MIC ended: %s", what, text[max(0, len(text)-2000):])
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w", what, errors.Join(ctx.Err(), err))
		}
	}
}

// Get asks one of its URLs.
func (m *MIC) Get(ctx context.Context, url string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", fmt.Errorf("asking MIC: %w", err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return "", fmt.Errorf("asking MIC: %w", err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return "", fmt.Errorf("reading MIC's answer: %w", err)
	}
	return string(body), nil
}
