// Command kubernetes is every program of Kubernetes that a cluster needs, and
// etcd, in one binary: it does what the name says that it is called by.
//
// One binary is compiled and linked once instead of seven times, and takes a
// third of the space. The module around it exists so that the versions that
// Kubernetes pins bind nothing else in this project. It must not hold a setting:
// whoever starts a program gives it its flags.
package main

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/server/v3/etcdmain"
	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/logs/json/register"          // --logging-format=json
	_ "k8s.io/component-base/metrics/prometheus/clientgo" // as the programs' own mains do
	_ "k8s.io/component-base/metrics/prometheus/version"  // as the programs' own mains do
	kubectl "k8s.io/kubectl/pkg/cmd"
	"k8s.io/kubectl/pkg/cmd/util"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	manager "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	proxy "k8s.io/kubernetes/cmd/kube-proxy/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"
)

func main() {
	programs := map[string]func(){
		"etcd":                    func() { etcdmain.Main(os.Args) },
		"kubectl":                 func() { util.CheckErr(cli.RunNoErrOutput(kubectl.NewDefaultKubectlCommand())) },
		"kube-apiserver":          component(apiserver.NewAPIServerCommand),
		"kube-controller-manager": component(manager.NewControllerManagerCommand),
		"kube-proxy":              component(proxy.NewProxyCommand),
		"kube-scheduler":          component(func() *cobra.Command { return scheduler.NewSchedulerCommand() }),
		"kubelet":                 component(func() *cobra.Command { return withContext(kubelet.NewKubeletCommand) }),
	}
	name := filepath.Base(os.Args[0])
	run, ok := programs[name]
	if !ok {
		fmt.Fprintf(os.Stderr, "%s: call this program by a link of one of these names: %s\n", name, strings.Join(slices.Sorted(maps.Keys(programs)), ", "))
		os.Exit(2)
	}
	run()
}

func component(command func() *cobra.Command) func() {
	return func() { os.Exit(cli.Run(command())) }
}

// withContext makes a command by a function that, from some version on, takes a
// context: that of the kubelet does since 1.34. This source is compiled with each
// version of Kubernetes that a lab can run.
func withContext(newCommand any) *cobra.Command {
	switch newCommand := newCommand.(type) {
	case func(context.Context) *cobra.Command:
		return newCommand(context.Background())
	case func() *cobra.Command:
		return newCommand()
	}
	panic(fmt.Sprintf("a command is made by a %T, which this program does not know", newCommand))
}
