package cli

import (
	"fmt"

	"github.com/spf13/cobra"
)

func (a *app) load() *cobra.Command {
	return &cobra.Command{
		Use:   "load IMAGE.tar",
		Short: "Load an image archive (docker save, OCI layout as tar) into every node",
		Long: `load makes an image known to every node. Nothing is ever pulled, so that pods need imagePullPolicy Never or
IfNotPresent and a tag other than latest.`,
		Args: exactly("the path of an image archive", 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			lab, err := a.lab()
			if err != nil {
				return err
			}
			return lab.Load(cmd.Context(), args[0])
		},
	}
}

func (a *app) images() *cobra.Command {
	return &cobra.Command{
		Use:   "images [NAME...]",
		Short: "Build image archives, all or those named, and print name, archive and digest",
		Long:  "images builds container images without Docker. The same source gives the same digest. `lab up` does this too.",
		RunE: func(cmd *cobra.Command, names []string) error {
			builder, err := a.builder()
			if err != nil {
				return err
			}
			if len(names) == 0 {
				names = builder.Buildable()
			}
			archives, err := builder.BuildImages(cmd.Context(), names...)
			if err != nil {
				return err
			}
			for _, image := range archives {
				fmt.Fprintf(a.env.Stdout, "%s %s %s\n", image.Reference, image.Path, image.Digest)
			}
			return nil
		},
	}
}
