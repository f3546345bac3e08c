// Command nmi measures NMI, as the process that ships, side by side with a bare
// net/http handler that writes the same bytes, and prints its figures beside
// their goals. A goal that is missed makes the exit code non-zero.
//
//	cold        64 pods on 8 identities, then 512 keys, before a metadata
//	            service that refuses what is above its documented limits
//	warm        throughput, CPU and allocations over loopback, at 1, 8, 64 and
//	            256 connections; latency at a third of the capacity
//	neighbour   one pod at 2,000 requests a second, and another's latency
//	memory      with 250 pods on the node, and 10,000 ServiceAccounts and 500
//	            identities in the cluster
//
// NMI runs in a network namespace with no route out, before a real API server
// and a simulated metadata service. It must not test whether NMI is right: other
// tests do.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/go-logr/logr"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/aad-pod-identity/aad-pod-identity/test/bench/report"
	"github.com/aad-pod-identity/aad-pod-identity/test/env"
)

func main() { os.Exit(run(os.Args[1:])) }

func run(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if len(args) == 3 && args[0] == bareCommand {
		return say(serveBare(ctx, args[1], args[2]))
	}
	if len(args) == 3 && args[0] == imdsCommand {
		return say(serveIMDS(ctx, args[1], args[2]))
	}
	ctrllog.SetLogger(logr.Discard())
	o, err := parse(args)
	if err != nil {
		return 2 // said by the flags
	}
	begun := time.Now()
	rows, err := measure(ctx, o)
	fmt.Print(report.Table("bare", "NMI", rows))
	fmt.Printf("\ntook %s\n", time.Since(begun).Round(time.Second))
	if err == nil && slices.ContainsFunc(rows, report.Row.Missed) {
		err = errors.New("not every goal was met")
	}
	return say(err)
}

func say(err error) int {
	if err == nil {
		return 0
	}
	fmt.Fprintln(os.Stderr, "\nbench failed:", err)
	return 1
}

// options are what the command line says.
type options struct {
	programs   string
	scenarios  string
	rounds     int
	round      time.Duration
	accounts   int
	identities int
	pods       int
}

func parse(args []string) (options, error) {
	var o options
	flags := flag.NewFlagSet("nmi", flag.ContinueOnError)
	flags.StringVar(&o.programs, "programs", filepath.Join(env.Root(), "bin"), "folder of nmi and azuresim")
	flags.StringVar(&o.scenarios, "scenarios", "cold,warm,neighbour", "what to measure")
	flags.IntVar(&o.rounds, "rounds", 7, "rounds of each measurement, NMI and the bare handler in turns; the median counts")
	flags.DurationVar(&o.round, "round", time.Second, "length of a round")
	flags.IntVar(&o.accounts, "service-accounts", 10_000, "ServiceAccounts in the cluster")
	o.identities, o.pods = 500, 250
	return o, flags.Parse(args)
}

// measure runs every scenario, and returns the figures that it got to.
func measure(ctx context.Context, o options) (rows []report.Row, err error) {
	s, err := newStage(ctx, o)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	for _, scenario := range []struct {
		name string
		run  func(context.Context) ([]report.Row, error)
	}{
		{"cold", s.cold},
		{"warm", s.warm},
		{"neighbour", s.neighbour},
	} {
		if !slices.Contains(strings.Split(o.scenarios, ","), scenario.name) {
			continue
		}
		s.progress("scenario " + scenario.name)
		found, err := scenario.run(ctx)
		rows = append(rows, found...)
		if err != nil {
			return rows, fmt.Errorf("scenario %s: %w", scenario.name, err)
		}
	}
	return rows, nil
}
