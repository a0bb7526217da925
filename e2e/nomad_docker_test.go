package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/aim-control/aimlock/e2e/harness"
)

// dockerHost is where a Docker daemon answers: DOCKER_HOST, or the usual socket.
// Without one the test is skipped.
func dockerHost(t *testing.T) string {
	t.Helper()
	host := os.Getenv("DOCKER_HOST")
	if host == "" {
		host = "unix:///var/run/docker.sock"
	}
	if out, err := exec.CommandContext(t.Context(), "docker", "-H", host, "info").CombinedOutput(); err != nil {
		t.Skipf("SKIPPED, NOT RUN: agent-docker, tick-docker, locksmith-docker and locksmith-once-docker are validated only: no Docker daemon answers at %s: %v: %s", host, err, firstLine(out))
	}
	return host
}

func firstLine(out []byte) string {
	line, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	return line
}

// TestNomadDocker follows the README of examples/nomad with the jobs of Docker, from
// the image on: the agent in its container writes into a folder of the machine, the
// locksmith leads, ticks bring a rollout to its end, and a sweep looks on.
func TestNomadDocker(t *testing.T) {
	t.Parallel()
	nomadBin(t)
	host := dockerHost(t)
	j := startNomadJobs(t, fmt.Sprintf(`plugin "docker" {
  config {
    endpoint = %q
    volumes {
      enabled = true
    }
  }
}
`, host))
	image := fmt.Sprintf("aimlock-e2e:%d", os.Getpid())
	j.env = append(j.env, "DOCKER_HOST="+host)
	blocks := readme(t, filepath.Join(j.dir, "README.md"))
	if len(blocks["docker"]) != 2 {
		t.Fatalf("the README has other steps: %v", blocks["docker"])
	}
	for _, b := range blocks["rights"] {
		j.sh(b)
	}
	const named = "export NOMAD_VAR_image=registry.example/aimlock:1\n"
	build, ok := strings.CutPrefix(blocks["docker"][0], named)
	if !ok {
		t.Fatalf("the README names the image otherwise: %s", blocks["docker"][0])
	}
	j.env = append(j.env, "NOMAD_VAR_image="+image)
	j.sh(build)
	t.Cleanup(func() {
		if out, err := exec.Command("docker", "-H", host, "image", "rm", "-f", image).CombinedOutput(); err != nil {
			t.Logf("the image is left: %v: %s", err, out)
		}
	})
	// Nomad's client is killed in the end, and leaves the containers of jobs that run.
	t.Cleanup(func() {
		ids, err := exec.Command("docker", "-H", host, "ps", "-aq", "--filter", "ancestor="+image).Output()
		if list := strings.Fields(string(ids)); err == nil && len(list) > 0 {
			_ = exec.Command("docker", append([]string{"-H", host, "rm", "-f"}, list...)...).Run()
		}
	})

	j.sh(blocks["docker"][1])
	waitForAgents(t, j.consul, []string{"a"})
	j.leads()
	j.drives("succeeded")
	j.delivered(j.read("rollout/aim_lock_config.conf"))
	j.sh(strings.ReplaceAll(blocks["sweep"][0], "locksmith-once.nomad.hcl", "locksmith-once-docker.nomad.hcl"))
	j.sweeps()
	if out := harness.Output(t, nomadLimit, harness.Spec{
		Path: "docker", Args: []string{"-H", host, "ps", "-a", "--filter", "ancestor=" + image, "--format", "{{.Names}}"},
	}); strings.Count(out, "agent-") != 1 || strings.Count(out, "locksmith-") != 1 {
		t.Errorf("the containers are %q", out)
	}
}
