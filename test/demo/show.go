package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/aad-pod-identity/aad-pod-identity/test/env"
	"github.com/aad-pod-identity/aad-pod-identity/test/world"
)

// armLatency is the simulated Azure's time for a change of a scale set. In Azure
// it is 40 to 60 seconds.
const armLatency = 2 * time.Second

// show builds the world, runs the tutorial in it and fails unless every step was
// really seen.
func show(ctx context.Context, out io.Writer) (err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	if os.Geteuid() != 0 {
		return errors.New("it makes network namespaces and so must run as root: try sudo make demo")
	}
	dir, err := os.MkdirTemp("", "aad-pod-identity-demo-")
	if err != nil {
		return fmt.Errorf("making a folder for state and logs: %w", err)
	}
	start := time.Now()
	w, err := world.New(ctx, world.Options{
		Programs: filepath.Join(env.Root(), "bin"), Kubernetes: env.Assets(), Dir: dir, ARMLatency: armLatency,
		Progress: func(step string) { fmt.Fprintf(out, "%6.1fs  %s\n", time.Since(start).Seconds(), step) },
	})
	if err != nil {
		return fmt.Errorf("%w\n(logs: %s)", err, dir)
	}
	defer func() {
		if closing := w.Close(); closing != nil {
			err = errors.Join(err, fmt.Errorf("cleaning up: %w", closing))
		}
		if err != nil {
			err = fmt.Errorf("%w\n(logs: %s)", err, filepath.Join(dir, "logs"))
			return
		}
		err = os.RemoveAll(dir)
	}()
	return tutorial(ctx, out, w, start)
}

func tutorial(ctx context.Context, out io.Writer, w *world.World, start time.Time) error {
	step := func(text string) { fmt.Fprintf(out, "%6.1fs  %s\n", time.Since(start).Seconds(), text) }
	for _, node := range w.Nodes {
		step(fmt.Sprintf("NMI on %s (pods by %s)", node.Name, node.Layout))
		if _, err := node.StartNMI(ctx, "standard"); err != nil {
			return err
		}
	}
	step("MIC in a pod on node-1, without a credential: its own token comes through NMI, by an exception")
	if _, err := w.StartMIC(ctx, w.Nodes[0]); err != nil {
		return err
	}
	step("the tutorial's AzureIdentity and AzureIdentityBinding are applied")
	if err := applyTutorial(ctx, w); err != nil {
		return err
	}
	fmt.Fprintln(out, "\nThe pod \"demo\" is created, with label aadpodidbinding=demo, and its program started:")
	if err := timeline(ctx, out, w); err != nil {
		return err
	}
	fmt.Fprintln(out, "\nThe pod \"stranger\" carries no label and asks for the same identity:")
	if err := refused(ctx, out, w); err != nil {
		return err
	}
	fmt.Fprintf(out, "\nEverything above was really seen, in %s. Nothing of it had a password.\n", time.Since(start).Round(100*time.Millisecond))
	return nil
}

// applyTutorial applies the manifests of the tutorial, with the two values that
// it asks a reader for.
func applyTutorial(ctx context.Context, w *world.World) error {
	for _, name := range []string{"azureidentity.yaml", "azureidentitybinding.yaml"} {
		text, err := example(w, name)
		if err != nil {
			return err
		}
		if err := w.Apply(ctx, text); err != nil {
			return err
		}
	}
	return nil
}

func example(w *world.World, name string) (string, error) {
	text, err := os.ReadFile(filepath.Join(env.Root(), "examples", "demo", name)) //nolint:gosec // a file of this project
	if err != nil {
		return "", fmt.Errorf("reading the tutorial: %w", err)
	}
	values := strings.NewReplacer(
		"$IDENTITY_RESOURCE_ID", w.Cloud.Demo.ID,
		"$IDENTITY_CLIENT_ID", w.Cloud.Demo.ClientID,
		"$VAULT_URL", world.VaultURL,
	)
	return values.Replace(string(text)), nil
}
