package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/aad-pod-identity/aad-pod-identity/test/labcli"
	"github.com/aad-pod-identity/aad-pod-identity/test/objects"
)

// show runs the tutorial in a lab and fails unless every step was really seen.
func show(ctx context.Context, out io.Writer, keep bool) (err error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Minute) // make demo has built everything before
	defer cancel()
	if os.Geteuid() != 0 {
		return errors.New("it makes namespaces, mounts and cgroups and so must run as root: try sudo -E make demo")
	}
	lab := labcli.New("")
	start := time.Now()
	fmt.Fprintln(out, "A real Kubernetes on this machine, with a simulated Azure beside it:")
	if err := lab.Up(ctx, out); err != nil {
		return err
	}
	defer func() {
		if keep && err == nil {
			fmt.Fprint(out, whatNext)
			return
		}
		err = errors.Join(err, lab.Down(context.WithoutCancel(ctx)))
	}()
	d := demo{lab: lab, out: out, start: start}
	if err := d.tutorial(ctx); err != nil {
		return err
	}
	fmt.Fprintf(out, "\nEverything above was really seen, in %s. Nothing of it had a password.\n", time.Since(start).Round(100*time.Millisecond))
	return nil
}

// demo is one showing.
type demo struct {
	lab   *labcli.Lab
	out   io.Writer
	start time.Time
	cloud cloud
}

func (d *demo) say(text string) {
	fmt.Fprintf(d.out, "%6.1fs  %s\n", time.Since(d.start).Seconds(), text)
}

func (d *demo) tutorial(ctx context.Context) error {
	d.say("helm installs the chart: MIC as a Deployment, NMI as a DaemonSet")
	if err := d.lab.InstallChart(ctx); err != nil {
		return err
	}
	d.say("in Azure: a managed identity, a key vault with a secret, and the right to read it")
	if err := d.furnish(ctx); err != nil {
		return err
	}
	if err := d.clear(ctx); err != nil {
		return err
	}
	d.say("the tutorial's AzureIdentity and AzureIdentityBinding are applied")
	for _, name := range []string{"azureidentity.yaml", "azureidentitybinding.yaml"} {
		if err := objects.Apply(ctx, d.lab.Kube, d.example(name)); err != nil {
			return err
		}
	}
	fmt.Fprintln(d.out, "\nThe tutorial's Deployment is applied, whose pods carry aadpodidbinding=demo:")
	if err := d.timeline(ctx); err != nil {
		return err
	}
	fmt.Fprintln(d.out, "\nThe pod \"stranger\" carries no label, runs the same program and asks for the same identity:")
	return d.stranger(ctx)
}

const whatNext = `
The lab is left running. Try:

  eval "$(bin/lab env)"
  kubectl get pods -A -o wide
  kubectl logs deployment/demo
  kubectl get azureidentityattachments -A -o yaml
  bin/lab exec "$(kubectl get pod -l app=demo -o name | cut -d/ -f2)" -- \
    curl -s -H Metadata:true 'http://169.254.169.254/metadata/identity/oauth2/token?resource=https://vault.azure.net'
  curl -s "$LAB_SIMULATOR/journal?since=0"       # every request that the simulated Azure got
  kubectl -n kube-system delete pod -l app.kubernetes.io/component=nmi   # and ask again

  bin/lab down                                   # removes everything
`
