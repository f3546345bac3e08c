package cli

import (
	"fmt"
	"log/slog"
	"strings"

	"github.com/spf13/cobra"

	"github.com/aad-pod-identity/aad-pod-identity/lab/internal/build"
	"github.com/aad-pod-identity/aad-pod-identity/lab/internal/cluster"
	"github.com/aad-pod-identity/aad-pod-identity/lab/internal/nodeinit"
	"github.com/aad-pod-identity/aad-pod-identity/lab/internal/topology"
)

const versionFlag = "kubernetes-version"

func (a *app) up() *cobra.Command {
	nodes, version := 0, ""
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Start the lab, or make sure that it runs; build what is missing first",
		Long: `up builds what is missing (about 10 minutes on 2 cold cores, once), starts the lab and waits until pods can
run. If the lab runs, it loads changed images. If an earlier command left it half-made, it starts afresh.

The nodes differ: odd ones link pods by a bridge and have kube-proxy in iptables mode, even ones have
point-to-point links and kube-proxy in nftables mode, and nothing there sets route_localnet. The third is a
virtual machine, all others are instances of two scale sets.

Kubernetes is the version that this project pins, or one of --kubernetes-version, 1.30 or newer. Another
version is built once, into a folder of its own, with the etcd that it was tested with.`,
		Example: "  lab up\n  lab up --nodes 3\n  lab up --kubernetes-version v1.35.4",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			want, err := wanted(nodes, cmd.Flags().Changed("nodes"), version)
			if err != nil {
				return err
			}
			lab, err := a.lab()
			if err != nil {
				return err
			}
			return lab.Up(cmd.Context(), want)
		},
	}
	cmd.Flags().IntVar(&nodes, "nodes", 0, fmt.Sprintf("how many nodes, 1 to %d (default: as it runs, or %d)", topology.MaxNodes, cluster.DefaultNodes))
	cmd.Flags().StringVar(&version, versionFlag, "", "version of Kubernetes, such as v1.35.4 (default: as it runs, or the pinned one)")
	return cmd
}

func (a *app) down() *cobra.Command {
	return &cobra.Command{
		Use: "down", Short: "Remove the lab, and check that nothing of it is left", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			lab, err := a.lab()
			if err != nil {
				return err
			}
			return lab.Down(cmd.Context())
		},
	}
}

func (a *app) build() *cobra.Command {
	return &cobra.Command{
		Use:   "build [PART...]",
		Short: "Build the programs of a lab ahead of time, or those named; helm only by its name",
		RunE: func(cmd *cobra.Command, parts []string) error {
			builder, err := a.builder()
			if err != nil {
				return err
			}
			known, err := builder.Parts()
			if err != nil {
				return err
			}
			if len(parts) == 0 {
				parts = known[:len(known)-1]
			}
			if err := builder.Build(cmd.Context(), parts...); err != nil {
				return fmt.Errorf("%w (parts: %s)", err, strings.Join(known, ", "))
			}
			a.progressf("built %s", strings.Join(parts, ", "))
			return nil
		},
	}
}

// wanted checks the flags of up. Without a number of nodes or a version the lab
// is as it runs, or by default.
func wanted(nodes int, counted bool, version string) (cluster.Want, error) {
	if nodes > topology.MaxNodes || counted && nodes < 1 {
		return cluster.Want{}, fmt.Errorf("--nodes is %d: want 1 to %d", nodes, topology.MaxNodes)
	}
	want := cluster.Want{Nodes: nodes}
	if version == "" {
		return want, nil
	}
	var err error
	if want.Kubernetes, err = build.ParseVersion(version); err != nil {
		return want, fmt.Errorf("--%s: %w", versionFlag, err)
	}
	return want, nil
}

// initNode is what a node's first process is called with.
func (a *app) initNode() *cobra.Command {
	return &cobra.Command{
		Use: cluster.InitCommand, Hidden: true, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return nodeinit.Run(cmd.Context(), a.env.Stdin, slog.New(slog.NewTextHandler(a.env.Stderr, nil)))
		},
	}
}
