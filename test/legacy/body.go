package legacy

import (
	"context"
	"net/http"
)

// emptyMeta is how the old types write metadata that nobody set.
func emptyMeta() Object { return Object{"creationTimestamp": nil} }

// body is the assignment as the old controller posts it: with full copies of the
// identity and the binding, their metadata included.
func (c *Client) body(ctx context.Context, a Assignment) (Object, error) {
	identity, err := c.do(ctx, http.MethodGet, path("azureidentities", a.From, a.Identity), jsonType, nil)
	if err != nil {
		return nil, err
	}
	binding, err := c.do(ctx, http.MethodGet, path("azureidentitybindings", a.From, a.Binding), jsonType, nil)
	if err != nil {
		return nil, err
	}
	return Object{
		"kind": "AzureAssignedIdentity", "apiVersion": group,
		"metadata": Object{
			"name": a.Name(), "namespace": a.Namespace, "creationTimestamp": nil,
			"labels": Object{"nodename": a.Node}, "finalizers": []string{Finalizer},
		},
		"spec": Object{
			"metadata":         emptyMeta(),
			"azureIdentityRef": identityCopy(identity),
			"azureBindingRef":  bindingCopy(binding),
			"pod":              a.Pod, "podNamespace": a.PodNamespace, "nodename": a.Node, "replicas": nil,
		},
		"status": Object{"metadata": emptyMeta(), "status": "Created", "availableReplicas": 1},
	}, nil
}

// identityCopy holds the fields that the old type has. A type of 0 is left out, a
// Secret is not.
func identityCopy(live Object) Object {
	from, _ := live["spec"].(Object)
	spec := Object{"metadata": emptyMeta(), "clientPassword": Object{}, "auxiliaryTenantIDs": nil, "replicas": nil}
	for _, field := range []string{"type", "resourceID", "clientID", "clientPassword", "tenantID", "auxiliaryTenantIDs", "adResourceID", "adEndpoint"} {
		if value, ok := from[field]; ok && value != float64(0) {
			spec[field] = value
		}
	}
	return Object{"kind": "AzureIdentity", "apiVersion": group, "metadata": live["metadata"], "spec": spec, "status": Object{"metadata": emptyMeta()}}
}

func bindingCopy(live Object) Object {
	from, _ := live["spec"].(Object)
	spec := Object{"metadata": emptyMeta(), "azureIdentity": from["azureIdentity"], "selector": from["selector"]}
	if weight, ok := from["weight"]; ok {
		spec["weight"] = weight
	}
	return Object{"kind": "AzureIdentityBinding", "apiVersion": group, "metadata": live["metadata"], "spec": spec, "status": Object{"metadata": emptyMeta()}}
}
