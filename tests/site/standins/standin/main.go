// standin stands for every image of Harbor's chart, so that a real Helm, a real kubelet and real
// probes can be tested without gigabytes of images.
//
// What it is, it learns from STANDIN_NAME (the image's name). It listens where the real component
// listens, answers what the chart's probes ask, and nothing is made up that can be had for real:
// nginx forwards to the upstreams of the chart's own nginx.conf, and core's health is the result
// of asking the other components by the URLs that the chart gave to it.
package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

// component says where an image listens. The TLS port replaces the plain one when the chart
// mounts a certificate; nginx keeps the plain one and redirects.
type component struct {
	plain, secure string
	others        []string // plain HTTP whatever the chart says: metrics, debug
	tcp           bool     // not HTTP at all
	handler       http.Handler
}

func components() map[string]component {
	return map[string]component{
		"nginx-photon":         {plain: "8080", secure: "8443", handler: http.HandlerFunc(front)},
		"harbor-portal":        {plain: "8080", secure: "8443", handler: only("/")},
		"harbor-core":          {plain: "8080", secure: "8443", others: []string{"8001"}, handler: core()},
		"harbor-jobservice":    {plain: "8080", secure: "8443", others: []string{"8001"}, handler: only("/api/v1/stats")},
		"registry-photon":      {plain: "5000", secure: "5443", others: []string{"5001", "8001"}, handler: only("/")},
		"harbor-registryctl":   {plain: "8080", secure: "8443", handler: only("/api/health")},
		"trivy-adapter-photon": {plain: "8080", secure: "8443", handler: only("/probe/healthy", "/probe/ready")},
		"harbor-exporter":      {plain: "8001", handler: only("/", "/metrics")},
		"harbor-db":            {plain: "5432", tcp: true},
		"redis-photon":         {plain: "6379", tcp: true},
		"valkey-photon":        {plain: "6379", tcp: true},
	}
}

func main() {
	switch filepath.Base(os.Args[0]) {
	case "docker-healthcheck.sh": // the database's exec probe
		if err := dial("127.0.0.1:5432"); err != nil {
			log.Fatal(err)
		}
		return
	case "harbor_core": // the chart's migration job, "-mode=migrate"
		if len(os.Args) > 1 && os.Args[1] == "-mode=migrate" {
			return
		}
	}
	name := os.Getenv("STANDIN_NAME")
	what, known := components()[name]
	if !known {
		log.Fatalf("STANDIN_NAME=%q is not an image of Harbor's chart", name)
	}
	what.serve(name)
	stop := make(chan os.Signal, 1) // the first process of a container has no default action
	signal.Notify(stop, syscall.SIGINT, syscall.SIGTERM)
	<-stop
}

func (what component) serve(name string) {
	switch certificate, key := mountedCertificate(); {
	case what.tcp:
		go accept(listen(what.plain))
	case certificate == "" || what.secure == "":
		go serveHTTP(listen(what.plain), what.handler)
	default:
		pair, err := tls.LoadX509KeyPair(certificate, key)
		if err != nil {
			log.Fatal(err)
		}
		config := &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}
		go serveHTTP(tls.NewListener(listen(what.secure), config), what.handler)
		if name == "nginx-photon" {
			go serveHTTP(listen(what.plain), http.HandlerFunc(redirect))
		}
	}
	for _, port := range what.others {
		go serveHTTP(listen(port), http.HandlerFunc(
			func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintf(w, "# %s\n", name) }))
	}
}

func listen(port string) net.Listener {
	listener, err := net.Listen("tcp", ":"+port)
	if err != nil {
		log.Fatal(err)
	}
	log.Print("listening on ", port)
	return listener
}

func serveHTTP(listener net.Listener, handler http.Handler) {
	log.Fatal((&http.Server{Handler: handler, ReadHeaderTimeout: time.Minute}).Serve(listener))
}

func accept(listener net.Listener) {
	for {
		connection, err := listener.Accept()
		if err != nil {
			log.Fatal(err)
		}
		connection.Close()
	}
}

// mountedCertificate finds what the chart mounts for expose.tls (nginx) and internalTLS (others).
func mountedCertificate() (certificate, key string) {
	if os.Getenv("STANDIN_NAME") == "nginx-photon" {
		if _, err := os.Stat("/etc/nginx/cert/tls.crt"); err == nil {
			return "/etc/nginx/cert/tls.crt", "/etc/nginx/cert/tls.key"
		}
		return "", ""
	}
	found, _ := filepath.Glob("/etc/harbor/ssl/*/tls.crt")
	if len(found) == 0 {
		return "", ""
	}
	return found[0], strings.TrimSuffix(found[0], "crt") + "key"
}

// only answers the paths that the real component's probes use, and 404 to the rest.
func only(paths ...string) http.Handler {
	mux := http.NewServeMux()
	for _, path := range paths {
		if path == "/" {
			path = "/{$}"
		}
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprintln(w, os.Getenv("STANDIN_NAME"), os.Getenv("STANDIN_VERSION"))
		})
	}
	return mux
}

// ---- nginx: forwards as the chart's nginx.conf says

var (
	upstream = regexp.MustCompile(`upstream\s+(\w+)\s*{\s*server\s+"?([^\s";]+)"?;`)
	scheme   = regexp.MustCompile(`proxy_pass\s+(https?)://core/`)
)

func front(w http.ResponseWriter, r *http.Request) {
	config, err := os.ReadFile("/etc/nginx/nginx.conf")
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	target := "portal"
	for _, prefix := range []string{"/api/", "/service/", "/v2/", "/c/"} {
		if strings.HasPrefix(r.URL.Path, prefix) {
			target = "core"
		}
	}
	to := url.URL{Scheme: "http"}
	if found := scheme.FindSubmatch(config); found != nil {
		to.Scheme = string(found[1])
	}
	for _, found := range upstream.FindAllSubmatch(config, -1) {
		if string(found[1]) == target {
			to.Host = string(found[2])
		}
	}
	proxy := httputil.NewSingleHostReverseProxy(&to)
	// as the real nginx, which does not verify its upstreams either
	proxy.Transport = &http.Transport{
		TLSClientConfig:   &tls.Config{InsecureSkipVerify: true},
		DisableKeepAlives: true,
	}
	proxy.ServeHTTP(w, r)
}

func redirect(w http.ResponseWriter, r *http.Request) {
	http.Redirect(w, r, "https://"+r.Host+r.URL.RequestURI(), http.StatusMovedPermanently)
}

// ---- core: ping, health, systeminfo

func core() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /api/v2.0/ping", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain")
		fmt.Fprint(w, "Pong")
	})
	mux.HandleFunc("GET /api/v2.0/health", health)
	mux.HandleFunc("GET /api/v2.0/systeminfo", systeminfo)
	mux.HandleFunc("GET /api/v2.0/users/current", admin(func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, map[string]any{"user_id": 1, "username": "admin"})
	}))
	mux.HandleFunc("GET /api/v2.0/configurations", admin(configurations))
	mux.HandleFunc("PUT /api/v2.0/configurations", admin(configure))
	mux.HandleFunc("/v2/", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Www-Authenticate", fmt.Sprintf(
			`Bearer realm="%s/service/token",service="harbor-registry"`, os.Getenv("EXT_ENDPOINT")))
		refuse(w, http.StatusUnauthorized, "UNAUTHORIZED", "unauthorized")
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		refuse(w, http.StatusNotFound, "NOT_FOUND", "a stand-in does not have this")
	})
	return mux
}

// readOnly is the one setting that it has. The real core keeps it in its database; this one in the
// site's Redis, if there is one that answers, so that all replicas have it.
var readOnly atomic.Bool

func isReadOnly() bool {
	if overTLS() {
		text, err := askRedis("GET", "standin:read_only")
		if err != nil {
			log.Print(err)
		}
		return text == "true"
	}
	return readOnly.Load()
}

func setReadOnly(value bool) error {
	readOnly.Store(value)
	if overTLS() {
		_, err := askRedis("SET", "standin:read_only", fmt.Sprint(value))
		return err
	}
	return nil
}

func admin(next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		user, password, _ := r.BasicAuth()
		if user != "admin" || password != os.Getenv("HARBOR_ADMIN_PASSWORD") {
			refuse(w, http.StatusUnauthorized, "UNAUTHORIZED", "unauthorized")
			return
		}
		next(w, r)
	}
}

func configurations(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Set-Cookie", "sid=of-a-browser; Path=/; HttpOnly")
	answer(w, http.StatusOK, map[string]any{
		"read_only": map[string]any{"editable": true, "value": isReadOnly()},
	})
}

func configure(w http.ResponseWriter, r *http.Request) {
	if _, err := r.Cookie("sid"); err == nil {
		refuse(w, http.StatusForbidden, "FORBIDDEN", "CSRF token not found in request")
		return
	}
	var wanted struct {
		ReadOnly *bool `json:"read_only"`
	}
	if err := json.NewDecoder(r.Body).Decode(&wanted); err != nil {
		refuse(w, http.StatusUnprocessableEntity, "UNPROCESSABLE_ENTITY", err.Error())
		return
	}
	if wanted.ReadOnly != nil { // what it doesn't know it ignores, as the real one does
		if err := setReadOnly(*wanted.ReadOnly); err != nil {
			refuse(w, http.StatusInternalServerError, "UNKNOWN", err.Error())
			return
		}
		log.Print("read_only is ", *wanted.ReadOnly)
	}
}

type componentHealth struct {
	Error  string `json:"error,omitempty"`
	Name   string `json:"name"`
	Status string `json:"status"`
}

func health(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), 10*time.Second)
	defer cancel()
	checks := []struct {
		name  string
		check func() error
	}{
		{"core", func() error { return nil }},
		{"database", func() error {
			return dial(net.JoinHostPort(os.Getenv("POSTGRESQL_HOST"), os.Getenv("POSTGRESQL_PORT")))
		}},
		{"jobservice", func() error { return get(ctx, "JOBSERVICE_URL", "/api/v1/stats") }},
		{"portal", func() error { return get(ctx, "PORTAL_URL", "/") }},
		{"redis", func() error {
			if overTLS() {
				_, err := askRedis("PING")
				return err
			}
			return dialURL(os.Getenv("_REDIS_URL_CORE"))
		}},
		{"registry", func() error { return get(ctx, "REGISTRY_URL", "/") }},
		{"registryctl", func() error { return get(ctx, "REGISTRY_CONTROLLER_URL", "/api/health") }},
		{"trivy", func() error { return get(ctx, "TRIVY_ADAPTER_URL", "/probe/healthy") }},
	}
	status, all := "healthy", []componentHealth{}
	for _, one := range checks {
		if one.name == "trivy" && os.Getenv("WITH_TRIVY") != "true" {
			continue
		}
		found := componentHealth{Name: one.name, Status: "healthy"}
		if err := one.check(); err != nil {
			found.Status, found.Error = "unhealthy", "failed to check health: "+err.Error()
			status = "unhealthy"
		}
		all = append(all, found)
	}
	answer(w, http.StatusOK, map[string]any{"components": all, "status": status}) // 200 even so
}

func systeminfo(w http.ResponseWriter, r *http.Request) {
	info := map[string]any{
		"auth_mode": "db_auth", "banner_message": "", "oidc_provider_name": "",
		"primary_auth_mode": false, "self_registration": false,
	}
	user, password, given := r.BasicAuth()
	if given && user == "admin" && password == os.Getenv("HARBOR_ADMIN_PASSWORD") {
		info["current_time"] = time.Now().UTC().Format("2006-01-02T15:04:05.000Z")
		info["external_url"] = os.Getenv("EXT_ENDPOINT")
		info["harbor_version"] = os.Getenv("STANDIN_VERSION") + "-standin"
		info["has_ca_root"] = false
		info["notification_enable"] = true
		info["project_creation_restriction"] = "everyone"
		info["read_only"] = isReadOnly()
		info["registry_storage_provider_name"] = os.Getenv("REGISTRY_STORAGE_PROVIDER_NAME")
		_, info["registry_url"], _ = strings.Cut(os.Getenv("EXT_ENDPOINT"), "://")
	}
	answer(w, http.StatusOK, info)
}

func answer(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body)
}

func refuse(w http.ResponseWriter, status int, code, message string) {
	answer(w, status, map[string]any{"errors": []map[string]string{{"code": code, "message": message}}})
}

// get asks another component as core does: by the URL from the chart, trusting the chart's CA.
func get(ctx context.Context, variable, path string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, os.Getenv(variable)+path, nil)
	if err != nil {
		return err
	}
	transport := &http.Transport{DisableKeepAlives: true}
	if ca, err := os.ReadFile(os.Getenv("INTERNAL_TLS_TRUST_CA_PATH")); err == nil {
		pool := x509.NewCertPool()
		pool.AppendCertsFromPEM(ca)
		transport.TLSClientConfig = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	}
	response, err := (&http.Client{Transport: transport}).Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", request.URL, response.Status)
	}
	return nil
}

// dialURL reaches the first host of a Redis URL (redis:// or redis+sentinel://a:1,b:2/m).
func dialURL(text string) error {
	_, rest, _ := strings.Cut(text, "://")
	rest, _, _ = strings.Cut(rest, "/")
	if at := strings.LastIndex(rest, "@"); at >= 0 {
		rest = rest[at+1:]
	}
	first, _, _ := strings.Cut(rest, ",")
	return dial(first)
}

// overTLS says whether the chart gave core a Redis that is asked for real.
func overTLS() bool { return strings.HasPrefix(os.Getenv("_REDIS_URL_CORE"), "rediss://") }

// askRedis sends one command to the Redis of the chart's URL, with the login that is in it. The
// server is verified with the authorities that the chart mounts (caBundleSecretName), which the
// real image adds to the system's.
func askRedis(command ...string) (string, error) {
	at, err := url.Parse(os.Getenv("_REDIS_URL_CORE"))
	if err != nil {
		return "", err
	}
	pool := x509.NewCertPool()
	if ca, err := os.ReadFile("/harbor_cust_cert/custom-ca.crt"); err == nil {
		pool.AppendCertsFromPEM(ca)
	}
	connection, err := tls.DialWithDialer(&net.Dialer{Timeout: 3 * time.Second}, "tcp", at.Host,
		&tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12})
	if err != nil {
		return "", err
	}
	defer connection.Close()
	if err := connection.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return "", err
	}
	reader := bufio.NewReader(connection)
	if password, given := at.User.Password(); given {
		login := []string{"AUTH", password}
		if name := at.User.Username(); name != "" {
			login = []string{"AUTH", name, password}
		}
		if _, err := exchange(connection, reader, login); err != nil {
			return "", err
		}
	}
	return exchange(connection, reader, command)
}

// exchange knows simple and bulk strings; nothing else is asked for.
func exchange(to io.Writer, from *bufio.Reader, words []string) (string, error) {
	text := fmt.Sprintf("*%d\r\n", len(words))
	for _, word := range words {
		text += fmt.Sprintf("$%d\r\n%s\r\n", len(word), word)
	}
	if _, err := io.WriteString(to, text); err != nil {
		return "", err
	}
	line, err := from.ReadString('\n')
	if err == nil && strings.HasPrefix(line, "-") {
		err = errors.New(strings.TrimSpace(line))
	}
	if err == nil && strings.HasPrefix(line, "$") && !strings.HasPrefix(line, "$-1") {
		line, err = from.ReadString('\n')
	}
	return strings.TrimSpace(line), err
}

func dial(address string) error {
	connection, err := net.DialTimeout("tcp", address, 3*time.Second)
	if err != nil {
		return err
	}
	return connection.Close()
}
