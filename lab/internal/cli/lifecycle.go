package cli

import (
	"fmt"
	"log/slog"
	"strings"

	"github.com/spf13/cobra"

	"github.com/aad-pod-identity/aad-pod-identity/lab/internal/cluster"
	"github.com/aad-pod-identity/aad-pod-identity/lab/internal/nodeinit"
	"github.com/aad-pod-identity/aad-pod-identity/lab/internal/topology"
)

func (a *app) up() *cobra.Command {
	nodes := 0
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Start the lab, or make sure that it runs; build what is missing first",
		Long: `up builds what is missing (about 10 minutes on 2 cold cores, once), starts the lab and waits until pods can
run. If the lab runs, it loads changed images. If an earlier command left it half-made, it starts afresh.

The nodes differ: odd ones link pods by a bridge and have kube-proxy in iptables mode, even ones have
point-to-point links and kube-proxy in nftables mode, and nothing there sets route_localnet. The third is a
virtual machine, all others are instances of two scale sets.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if cmd.Flags().Changed("nodes") && nodes < 1 {
				return fmt.Errorf("--nodes is %d: want 1 to %d", nodes, topology.MaxNodes)
			}
			if nodes > topology.MaxNodes {
				return fmt.Errorf("--nodes is %d: want 1 to %d", nodes, topology.MaxNodes)
			}
			lab, err := a.lab()
			if err != nil {
				return err
			}
			return lab.Up(cmd.Context(), nodes)
		},
	}
	cmd.Flags().IntVar(&nodes, "nodes", 0, fmt.Sprintf("how many nodes, 1 to %d (default: as it runs, or %d)", topology.MaxNodes, cluster.DefaultNodes))
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

// initNode is what a node's first process is called with.
func (a *app) initNode() *cobra.Command {
	return &cobra.Command{
		Use: cluster.InitCommand, Hidden: true, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return nodeinit.Run(cmd.Context(), a.env.Stdin, slog.New(slog.NewTextHandler(a.env.Stderr, nil)))
		},
	}
}
