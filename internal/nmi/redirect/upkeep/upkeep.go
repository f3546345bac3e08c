// Package upkeep holds the commands that look after a node's rules without an
// agent: cleanup takes them away, and redirect-only puts them in place ahead of
// one.
//
// A command says what it did, in words for a person, and can be repeated. The
// package must not serve pods, nor need an API server.
package upkeep

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/pflag"

	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/command"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/redirect"
)

// A tool is one of the commands.
type tool struct {
	name, summary, help string
	// flags adds the command's own flags.
	flags func(*invocation, *pflag.FlagSet)
	run   func(context.Context, *invocation) int
}

func tools() []tool {
	return []tool{cleanup(), redirectOnly()}
}

// Summary returns a line for each command, for the help of the program.
func Summary() string {
	var out strings.Builder
	for _, c := range tools() {
		command.Sayf(&out, "  nmi %-14s %s\n", c.name, c.summary)
	}
	return out.String()
}

// invocation is one call of a command.
type invocation struct {
	stdout, stderr io.Writer

	metadataIP, metadataPort  string
	target                    string
	listenAddress, listenPort string
	keep                      bool

	datapath *redirect.NFTables
	config   redirect.Config
}

// Execute runs the command that a command line, without the program's name, begins
// with, and returns the exit code of the process. It returns false if it begins
// with none.
func Execute(ctx context.Context, args []string, stdout, stderr io.Writer) (code int, known bool) {
	for _, c := range tools() {
		if len(args) > 0 && args[0] == c.name {
			return c.execute(ctx, args[1:], &invocation{stdout: stdout, stderr: stderr}), true
		}
	}
	return 0, false
}

func (c tool) execute(ctx context.Context, args []string, i *invocation) int {
	line := command.Line{
		Name: c.name, Summary: c.summary, Help: c.help, About: "Flags, to be given as the agent has them", Check: i.open,
		Flags: func(f *pflag.FlagSet) {
			i.addFlags(f)
			if c.flags != nil {
				c.flags(i, f)
			}
		},
	}
	if code, run := line.Read(args, i.stderr); !run {
		return code
	}
	return c.run(ctx, i)
}

func (i *invocation) addFlags(f *pflag.FlagSet) {
	f.StringVar(&i.metadataIP, "metadata-ip", "169.254.169.254", "address of the metadata service")
	f.StringVar(&i.metadataPort, "metadata-port", "80", "port of the metadata service")
	f.StringVar(&i.target, "redirect-target", "loopback", "where the agent has pods led to: loopback or link, a link of its own")
	f.StringVar(&i.listenAddress, "nmi-listen-address", "127.0.0.1", "IPv4 address on which the agent serves pods")
	f.StringVar(&i.listenPort, "nmi-port", "2579", "port on which the agent serves pods")
}

// open validates the flags. It touches nothing.
func (i *invocation) open() error {
	i.config = redirect.Config{UID: uint32(os.Geteuid()), Link: i.target == "link"} //nolint:gosec // a uid is 32 bits wide
	if !i.config.Link && i.target != "loopback" {
		return fmt.Errorf("--redirect-target is %q: want loopback or link", i.target)
	}
	i.listenAddress = redirect.ListenAddress(i.listenAddress, i.config.Link)
	var err error
	if i.config.Metadata, err = endpoint(i.metadataIP, "metadata-ip", i.metadataPort, "metadata-port"); err != nil {
		return err
	}
	if i.config.Target, err = endpoint(i.listenAddress, "nmi-listen-address", i.listenPort, "nmi-port"); err != nil {
		return err
	}
	if i.config.Target.Addr().IsUnspecified() && !i.config.Link { // as the agent does: this one is among all
		i.config.Target = netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), i.config.Target.Port())
	}
	i.datapath, err = redirect.New(i.config)
	return err
}

// endpoint reads an address and a port that two flags give.
func endpoint(ip, ipFlag, port, portFlag string) (netip.AddrPort, error) {
	addr, err := netip.ParseAddr(ip)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("reading --%s: %w", ipFlag, err)
	}
	number, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("reading --%s: %w", portFlag, err)
	}
	return netip.AddrPortFrom(addr, uint16(number)), nil
}
