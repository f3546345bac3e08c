package cluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/aad-pod-identity/aad-pod-identity/lab/internal/build"
	"github.com/aad-pod-identity/aad-pod-identity/lab/internal/network"
	"github.com/aad-pod-identity/aad-pod-identity/lab/internal/render"
	"github.com/aad-pod-identity/aad-pod-identity/lab/internal/state"
	"github.com/aad-pod-identity/aad-pod-identity/lab/internal/topology"
)

// DefaultNodes is one node of each layout.
const DefaultNodes = 2

// Want says which lab is wanted. What is zero is as it runs, or by default.
type Want struct {
	// Nodes is how many; by default [DefaultNodes].
	Nodes int
	// Kubernetes is its version; by default the one that this project pins.
	Kubernetes build.Version
}

// check is an error if a lab that runs is not the one that is wanted.
func (w Want) check(nodes int, version build.Version) error {
	if w.Nodes != 0 && w.Nodes != nodes {
		return fmt.Errorf("the lab runs with %d nodes: `lab down` first for one with %d", nodes, w.Nodes)
	}
	if w.Kubernetes != (build.Version{}) && w.Kubernetes != version {
		return fmt.Errorf("the lab runs Kubernetes %s: `lab down` first for one with %s", version, w.Kubernetes)
	}
	return nil
}

// Up brings the lab up that is wanted, or makes sure that it is. What an earlier
// command left half-made is removed first.
func (l *Lab) Up(ctx context.Context, want Want) error {
	unlock, err := l.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	lab, running, err := l.settle(want)
	if err != nil {
		return err
	}
	archives, err := l.prepare(ctx)
	if err != nil {
		return err
	}
	if !running {
		if lab, err = l.create(ctx, cmp.Or(want.Nodes, DefaultNodes)); err != nil {
			return fmt.Errorf("%w (`lab logs` shows why, `lab down` removes what is there)", err)
		}
	}
	if err := l.finish(ctx, lab, archives); err != nil {
		return fmt.Errorf("%w (`lab status` and `lab logs` show more)", err)
	}
	l.progress("lab %d is up, with Kubernetes %s: eval \"$(lab env)\"", lab.Number, l.version)
	return nil
}

// settle returns the lab that runs as a whole, if it is the one that is wanted,
// and which version of Kubernetes is used from here on.
func (l *Lab) settle(want Want) (topology.Lab, bool, error) {
	lab, running, err := l.present()
	if err != nil {
		return topology.Lab{}, false, err
	}
	if running {
		return lab, true, want.check(len(lab.Nodes), l.version)
	}
	return topology.Lab{}, false, l.use(want.Kubernetes)
}

func (l *Lab) lock(ctx context.Context) (func(), error) {
	return l.dir.Lock(ctx, func() { l.progress("waiting for another command on this lab") })
}

// present returns the lab that runs as a whole; false for anything less.
func (l *Lab) present() (topology.Lab, bool, error) {
	saved, ok, err := l.dir.Load()
	if err != nil || !ok || !saved.Complete {
		return topology.Lab{}, false, err
	}
	lab, err := l.plan()
	if err != nil {
		return topology.Lab{}, false, err
	}
	return lab, l.allAlive(lab), nil
}

// prepare builds everything and packs the images of all programs that there are.
func (l *Lab) prepare(ctx context.Context) ([]build.Archive, error) {
	if err := build.CheckMachine(); err != nil {
		return nil, err
	}
	l.progress("building what has changed")
	if err := l.builder.Build(ctx, build.Needed()...); err != nil {
		return nil, err
	}
	return l.builder.BuildImages(ctx, l.builder.Buildable()...)
}

// create starts the simulated Azure, then the nodes.
func (l *Lab) create(ctx context.Context, nodes int) (topology.Lab, error) {
	if err := l.teardown(ctx); err != nil {
		return topology.Lab{}, fmt.Errorf("removing what an earlier lab left: %w", err)
	}
	lab, hub, err := l.claim(nodes)
	if err != nil {
		return topology.Lab{}, err
	}
	l.progress("lab %d: %d nodes in %s, Kubernetes %s", lab.Number, len(lab.Nodes), lab.Range(), l.version)
	if err := l.writeKeys(lab); err != nil {
		return topology.Lab{}, err
	}
	l.progress("azuresim, in a network namespace of its own")
	if err := l.startHub(ctx, lab, hub); err != nil {
		return topology.Lab{}, fmt.Errorf("starting the simulated Azure: %w", err)
	}
	for _, n := range lab.Nodes {
		l.progress("%s at %s: %s links, kube-proxy by %s", n.Name(), n.Addr(), n.Layout, n.ProxyMode)
		if err := l.startNode(lab, n, hub.process.PID); err != nil {
			return topology.Lab{}, fmt.Errorf("starting %s: %w", n.Name(), err)
		}
	}
	return lab, l.dir.Save(state.Lab{Number: lab.Number, Nodes: nodes, Kubernetes: l.version.String(), Complete: true})
}

// claim starts the hub, which has nothing to do yet, and takes a number with a
// link to it. If this program dies on the way, the hub ends and the link goes.
func (l *Lab) claim(nodes int) (topology.Lab, *member, error) {
	hub, err := l.spawn(render.HubName)
	if err != nil {
		return topology.Lab{}, nil, err
	}
	number, err := network.Claim(hub.process.PID)
	if err != nil {
		return topology.Lab{}, nil, err
	}
	lab, err := topology.New(number, nodes)
	if err != nil {
		return topology.Lab{}, nil, err
	}
	return lab, hub, l.dir.Save(state.Lab{Number: number, Nodes: nodes, Kubernetes: l.version.String()})
}

func (l *Lab) startHub(ctx context.Context, lab topology.Lab, hub *member) error {
	if err := writeFiles(render.HubFiles(lab, l.paths())); err != nil {
		return err
	}
	if err := errors.Join(l.cgroups.Create(lab.HubCgroup()), l.cgroups.Join(lab.HubCgroup(), hub.process.PID)); err != nil {
		return err
	}
	if err := network.ConnectHub(lab, hub.process.PID); err != nil {
		return err
	}
	if err := loadRules(ctx, hub.process.PID, render.Firewall(lab)); err != nil {
		return err
	}
	if err := hub.begin(render.HubSpec(lab, l.paths())); err != nil {
		return err
	}
	return l.trustAzure(ctx, lab)
}

func (l *Lab) startNode(lab topology.Lab, n topology.Node, hub int) error {
	if err := l.writeNode(lab, n); err != nil {
		return err
	}
	node, err := l.spawn(n.Name())
	if err != nil {
		return err
	}
	if err := errors.Join(l.cgroups.Create(n.Cgroup()), l.cgroups.Join(n.Cgroup(), node.process.PID)); err != nil {
		return err
	}
	if err := network.ConnectNode(lab, n, hub, node.process.PID); err != nil {
		return err
	}
	return node.begin(render.NodeSpec(lab, n, l.paths()))
}

// finish loads the images and waits until pods can run.
func (l *Lab) finish(ctx context.Context, lab topology.Lab, archives []build.Archive) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return l.loadAll(ctx, lab, archives) })
	group.Go(func() error { return l.install(ctx, lab) })
	return group.Wait()
}

// nodeAt returns the node of a number.
func nodeAt(lab topology.Lab, number int) (topology.Node, error) {
	i := slices.IndexFunc(lab.Nodes, func(n topology.Node) bool { return n.Number == number })
	if i < 0 {
		return topology.Node{}, fmt.Errorf("there is no node %d: this lab has nodes 1 to %d", number, len(lab.Nodes))
	}
	return lab.Nodes[i], nil
}
