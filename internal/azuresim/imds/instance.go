package imds

import (
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armid"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/state"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/wire"
)

// codeVersion marks the refusal of an api-version, whose body lists newer ones.
const codeVersion = "invalid_api_version"

// instanceVersions are the documented api-versions of IMDS, oldest first.
func instanceVersions() []string {
	return []string{
		"2017-04-02", "2017-08-01", "2017-10-01", "2017-12-01", "2018-02-01", "2018-04-02", "2018-10-01", "2019-02-01",
		"2019-03-11", "2019-04-30", "2019-06-01", "2019-06-04", "2019-08-01", "2019-08-15", "2019-11-01", "2020-06-01",
		"2020-07-15", "2020-09-01", "2020-10-01", "2020-12-01", "2021-01-01", "2021-02-01", "2021-03-01", "2021-05-01",
		"2021-10-01", "2021-11-01", "2021-11-15", "2021-12-13", "2023-07-01", "2023-11-15",
	}
}

// newest returns the last three versions, newest first.
func newest(versions []string) []string {
	last := slices.Clone(versions[len(versions)-3:])
	slices.Reverse(last)
	return last
}

type instanceBody struct {
	Compute computeBody `json:"compute"`
}

// computeBody is a documented subset, the same for every api-version.
type computeBody struct {
	AzEnvironment     string `json:"azEnvironment"`
	Location          string `json:"location"`
	Name              string `json:"name"`
	OSType            string `json:"osType"`
	Provider          string `json:"provider"`
	ResourceGroupName string `json:"resourceGroupName"`
	ResourceID        string `json:"resourceId"`
	SubscriptionID    string `json:"subscriptionId"`
	VMID              string `json:"vmId"`
	VMScaleSetName    string `json:"vmScaleSetName"`
}

func (s *Server) instance(call *wire.Call, node state.NodeInfo, computeOnly bool) (wire.Reply, error) {
	values, err := query(call, "api-version", "format")
	if err != nil {
		return wire.Reply{}, err
	}
	version := values.Get("api-version")
	if !slices.Contains(instanceVersions(), version) {
		e := wire.Refuse(http.StatusBadRequest, codeVersion,
			"Bad request. api-version is invalid or was not specified in the request. For more information refer to aka.ms/azureimds")
		e.Unexpected = version != ""
		return wire.Reply{}, e
	}
	if format := values.Get("format"); format != "" && format != "json" {
		return wire.Reply{}, wire.Unexpected(http.StatusBadRequest, "invalid_request", "Bad request. The format '%s' is not simulated.", format)
	}
	compute, err := describe(node)
	if err != nil {
		return wire.Reply{}, err
	}
	if computeOnly {
		return wire.Reply{Body: compute}, nil
	}
	return wire.Reply{Body: instanceBody{Compute: compute}}, nil
}

// describe tells a scale set's instance from a virtual machine of its own, which
// names no scale set.
func describe(node state.NodeInfo) (computeBody, error) {
	id, err := armid.Parse(node.Resource)
	if err != nil {
		return computeBody{}, fmt.Errorf("describing node %s: %w", node.Name, err)
	}
	body := computeBody{
		AzEnvironment: "AzurePublicCloud", Location: node.Location, OSType: "Linux", Provider: "Microsoft.Compute",
		ResourceGroupName: id.ResourceGroup(), SubscriptionID: id.Subscription(), VMID: node.VMID,
		Name: id.Name(), ResourceID: node.Resource,
	}
	if node.Kind == state.TypeScaleSet {
		body.Name, body.VMScaleSetName = fmt.Sprintf("%s_%d", id.Name(), node.Instance), id.Name()
		body.ResourceID = fmt.Sprintf("%s/virtualMachines/%d", node.Resource, node.Instance)
	}
	if node.PartOf != "" {
		body.VMScaleSetName = node.PartOf[strings.LastIndexByte(node.PartOf, '/')+1:]
	}
	return body, nil
}
