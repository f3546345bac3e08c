// Command mic measures MIC, as the process that ships, against a real API
// server with the numbers of objects of large clusters, and prints its figures
// beside those of AAD Pod Identity v1.8.17. A goal that is missed makes the exit
// code non-zero.
//
//	burst      2,000 pods of 100 selectors appear at once
//	idle       then 500 events that change nothing
//	namesakes  100 namespaces with the same names and one selector
//	large      5,000 nodes, 100,000 pods of which 20,000 are labelled, 500
//	           identities, 20 scale sets
//
// Azure is simulated in this process; there are no kubelets. It must not test
// whether MIC is right: other tests do.
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

func main() { os.Exit(run()) }

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ctrllog.SetLogger(logr.Discard())
	o, err := parse(os.Args[1:])
	if err != nil {
		return 2 // said by the flags
	}
	begun := time.Now()
	rows, err := measure(ctx, o)
	fmt.Print(report.Table("v1.8.17", "this", rows))
	fmt.Printf("\ntook %s\n", time.Since(begun).Round(time.Second))
	switch {
	case err != nil:
		fmt.Fprintln(os.Stderr, "\nbench failed:", err)
		return 1
	case slices.ContainsFunc(rows, report.Row.Missed):
		fmt.Fprintln(os.Stderr, "\nnot every goal was met")
		return 1
	}
	return 0
}

// options are what the command line says.
type options struct {
	only  []string      // scenes; empty: all
	scale float64       // of the large scene
	arm   time.Duration // how long an ARM operation runs
	mic   string        // the program
	keep  string        // a folder for logs, kept; empty: a new one that goes
}

func parse(args []string) (options, error) {
	var o options
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	only := flags.String("only", "", "scenes to play, of burst, namesakes and large, separated by commas (default all)")
	flags.Float64Var(&o.scale, "scale", 1, "play the large scene at a part of its size, to try something out")
	flags.DurationVar(&o.arm, "arm", 40*time.Second, "how long a change of a scale set takes; Azure's take 40 to 60 s")
	flags.StringVar(&o.mic, "mic", filepath.Join(env.Root(), "bin", "mic"), "the program to measure")
	flags.StringVar(&o.keep, "keep", "", "keep the logs in this folder")
	if err := flags.Parse(args); err != nil {
		return o, fmt.Errorf("reading the command line: %w", err)
	}
	if *only != "" {
		o.only = strings.Split(*only, ",")
	}
	return o, nil
}

// measure plays the scenes, each in a cluster of its own, and returns what was
// measured, also when a later one fails.
func measure(ctx context.Context, o options) ([]report.Row, error) {
	var rows []report.Row
	for _, scene := range []struct {
		name string
		play func(context.Context, *world) ([]report.Row, error)
	}{{"burst", burst}, {"namesakes", namesakes}, {"large", large}} {
		if len(o.only) > 0 && !slices.Contains(o.only, scene.name) {
			continue
		}
		got, err := play(ctx, o, scene.name, scene.play)
		rows = append(rows, got...)
		if err != nil {
			return rows, fmt.Errorf("%s: %w", scene.name, err)
		}
	}
	return rows, nil
}

func play(ctx context.Context, o options, name string, scene func(context.Context, *world) ([]report.Row, error)) (rows []report.Row, err error) {
	w, err := newWorld(ctx, o, name)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, w.close()) }()
	return scene(ctx, w)
}
