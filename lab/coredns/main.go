// Command coredns is CoreDNS with the few plugins that the lab uses: the whole
// of it takes longer to compile than a kubelet.
//
// The module around it exists so that CoreDNS's dependencies bind nothing else
// in this project. It must not hold a setting: the Corefiles are the lab's.
package main

import (
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/coremain"
	_ "github.com/coredns/coredns/plugin/cache"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/forward"
	_ "github.com/coredns/coredns/plugin/health"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	_ "github.com/coredns/coredns/plugin/ready"
	_ "github.com/coredns/coredns/plugin/reload"
	_ "github.com/coredns/coredns/plugin/template"
)

func main() {
	// The order is that in which a query passes the plugins, as in CoreDNS itself.
	dnsserver.Directives = []string{"reload", "health", "ready", "errors", "cache", "template", "kubernetes", "forward"}
	coremain.Run()
}
