package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/aad-pod-identity/aad-pod-identity/lab/internal/build"
	"github.com/aad-pod-identity/aad-pod-identity/lab/internal/topology"
)

// Load loads an image archive into every node.
func (l *Lab) Load(ctx context.Context, archive string) error {
	lab, err := l.plan()
	if err != nil {
		return err
	}
	unlock, err := l.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	path, err := filepath.Abs(archive)
	if err != nil {
		return fmt.Errorf("loading %s: %w", archive, err)
	}
	group, ctx := errgroup.WithContext(ctx)
	for _, n := range lab.Nodes {
		group.Go(func() error { return l.importImage(ctx, n, path) })
	}
	return group.Wait()
}

// loadAll loads archives that the nodes do not have yet.
func (l *Lab) loadAll(ctx context.Context, lab topology.Lab, archives []build.Archive) error {
	loaded, err := l.dir.Loaded()
	if err != nil {
		return err
	}
	fresh := make([][]string, len(lab.Nodes)) // by node: what was loaded now
	group, ctx := errgroup.WithContext(ctx)
	for i, n := range lab.Nodes {
		group.Go(func() error {
			if err := l.awaitContainerd(ctx, lab, n); err != nil {
				return err
			}
			for _, a := range archives {
				if loaded[n.Name()+" "+a.Reference] == a.Digest {
					continue
				}
				if err := l.importImage(ctx, n, a.Path); err != nil {
					return err
				}
				fresh[i] = append(fresh[i], a.Reference)
			}
			return nil
		})
	}
	err = group.Wait()
	digests := map[string]string{}
	for _, a := range archives {
		digests[a.Reference] = a.Digest
	}
	for i, n := range lab.Nodes {
		for _, reference := range fresh[i] {
			loaded[n.Name()+" "+reference] = digests[reference]
		}
	}
	return errors.Join(err, l.dir.SaveLoaded(loaded))
}

func (l *Lab) awaitContainerd(ctx context.Context, lab topology.Lab, n topology.Node) error {
	answers := func(ctx context.Context) error { return l.inNode(ctx, n, nil, "ctr", "version") }
	return await(ctx, "containerd of "+n.Name(), time.Minute, l.whileAlive(lab, answers))
}

// importImage hands the archive over through a pipe: the node need not see where
// it lies.
func (l *Lab) importImage(ctx context.Context, n topology.Node, path string) error {
	f, err := os.Open(path) //nolint:gosec // the user names it
	if err != nil {
		return fmt.Errorf("loading an image: %w", err)
	}
	defer f.Close() // only read
	if err := l.inNode(ctx, n, f, "ctr", "--namespace=k8s.io", "images", "import", "--local", "-"); err != nil {
		return fmt.Errorf("loading %s into %s: %w", path, n.Name(), err)
	}
	return nil
}

func (l *Lab) inNode(ctx context.Context, n topology.Node, stdin io.Reader, command ...string) error {
	p, err := l.alive(n.Name())
	if err != nil {
		return err
	}
	command[0] = filepath.Join(l.builder.Programs(), command[0])
	return run(ctx, enter(p, command...), stdin)
}

func probe(ctx context.Context, client *http.Client, url string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close() // nothing is read
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answered %s", url, response.Status)
	}
	return nil
}
