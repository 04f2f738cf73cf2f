// SPDX-License-Identifier: Apache-2.0

package cli

const (
	gatewayShort = "let the uploads of any other client resume"
	runShort     = "run a command whose pushes and pulls resume"
	serveShort   = "serve an endpoint through which other clients push"
	setupShort   = "configure a client to push through the gateway"

	gatewayVerbMissing    = "command missing: rpush gateway run -- COMMAND, rpush gateway serve, or rpush gateway setup CLIENT"
	noGatewayVerb         = "%q is not a command of rpush gateway: use run, serve or setup"
	upstreamAndRegistry   = "--upstream names the one registry: leave out --registry"
	authfileWithoutSignIn = "--authfile has no effect without --sign-in"
	acceptNeedsState      = "--accept keeps uploads in --state-dir: leave out --no-state"
	badServeTimeout       = "--header-timeout and --idle-timeout need a positive time, --stop-timeout none below 0"
	publicNeeds           = "%s is not a loopback address: it needs %s"
	flagNeedsOneRegistry  = "%s applies to one registry: name it with --upstream or --registry"
	runOneRegistry        = "%s applies to one registry: name exactly one with --registry"
	oneSocket             = "systemd passed several sockets; the unit needs one ListenStream"

	htpasswdKept    = "--htpasswd: %v; the passwords from before stay valid"
	setupWhich      = "name the client: rpush gateway setup docker, containerd, buildkit, podman or kaniko"
	setupTooMany    = "%q is one argument too many: rpush gateway setup CLIENT [REGISTRY]"
	setupNoRegistry = "name the registry: rpush gateway setup %s REGISTRY"
	setupNeedsRoot  = "this needs root: sudo rpush gateway setup %s ..."
	setupNotApplied = "# nothing was changed: --apply makes these changes\n"
	setupUse        = "# then:\n"

	noCommand          = "COMMAND is missing: rpush gateway run -- crane push app.tar registry.example/team/app:1"
	noRunHere          = "programs on this system do not read SSL_CERT_FILE, so rpush gateway run cannot make them trust it; use rpush gateway serve"
	noRegistryToServe  = "neither the command's arguments nor the files of docker login name a registry; add --registry HOST"
	daemonWords        = "%s leaves the work to %s, whose connections this command cannot redirect: use rpush gateway serve"
	commandNotFound    = "%s cannot be run: %v"
	nothingCameThrough = "gateway: nothing went to %s through the gateway; registries at loopback addresses, and those that --registry does not name, are reached directly"
)

const gatewayHelp = `Let the uploads of any other client resume, unchanged.

  rpush gateway run -- COMMAND   run a client whose pushes and pulls resume
  rpush gateway serve            an endpoint through which other clients push
  rpush gateway setup CLIENT     configure docker, containerd, buildkit, podman or
                                 kaniko to push through it

The --help of each says more.
`

const setupHelp = `Print what a client needs to push through rpush gateway serve. --apply writes it,
and --undo --apply takes exactly that back. rpush changes no file that somebody
else made or has changed, except for lines of its own in buildkitd.toml.

  rpush gateway setup docker REGISTRY       hosts.toml (Docker 29 and later)
  rpush gateway setup containerd REGISTRY   hosts.toml
  rpush gateway setup buildkit              buildkitd.toml
  rpush gateway setup podman                registries.conf.d (skopeo and buildah too)
  rpush gateway setup kaniko                prints flags
`

const runHelp = `Run a registry client with a gateway between the client and its registries. When
a connection to a registry breaks, the gateway continues the upload or download,
and the client does not notice. rpush exits with the client's exit code.

  rpush gateway run -- skopeo copy oci:app docker://registry.example/team/app:1
  rpush gateway run --registry registry.example -- ./build-and-push.sh

The client gets HTTPS_PROXY, HTTP_PROXY and SSL_CERT_FILE (and what Node.js,
Python, curl and git read). It then trusts an authority that can vouch for the
registries only and whose key never leaves this process. Connections to other
hosts are passed on unread. The client's own credentials go to the registry.

It cannot help a client whose daemon does the work, such as docker push: use
rpush gateway serve. Programs ignore proxies for loopback addresses.
`

const serveHelp = `Serve an endpoint through which docker, buildkit, containerd, podman and every
other client push and pull. When a connection to a registry breaks, the gateway
continues the upload or download, and the client does not notice. SIGTERM ends
it.

  rpush gateway serve --upstream REGISTRY
        image names are those at REGISTRY:
        docker push localhost:5077/team/app:1
  rpush gateway serve
        the first element of a name is its registry, or ns when containerd pulls:
        docker push localhost:5077/registry.example/team/app:1

  rpush gateway serve --upstream REGISTRY --accept
        beside a registry that loses an upload whenever it breaks
        (distribution 2, Harbor): the gateway keeps what arrived, and the
        client continues

The client's own credentials go to the registry as they are: docker login
localhost:5077. --sign-in uses those of this user instead, for what --allow
names. An address that is not loopback needs --cert-file, --key-file and
--htpasswd, and --upstream or --registry; a client's password for the gateway
goes to no registry. /healthz says that it runs, /metrics has metrics for
Prometheus.
`
