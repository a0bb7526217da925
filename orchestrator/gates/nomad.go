package gates

import (
	"context"
	"fmt"
	"strconv"

	"github.com/hashicorp/nomad/api"

	"github.com/aim-control/aimlock/internal/nomadapi"
	"github.com/aim-control/aimlock/internal/text"
	"github.com/aim-control/aimlock/orchestrator"
)

// nomadDeployment looks at the last deployment of a job.
type nomadDeployment struct {
	connect func() (*nomadapi.Client, error)
}

var _ Kind = (*nomadDeployment)(nil)

func (k *nomadDeployment) Ask(ctx context.Context, q Question) Answer {
	g := q.Gate.NomadDeployment
	if g == nil {
		return unknown("the gate names no job")
	}
	if k.connect == nil {
		return unknown("Nomad is not asked: set NOMAD_ADDR where the orchestrator runs")
	}
	c, err := k.connect()
	if err != nil {
		return failed("%v", err)
	}
	name := strconv.Quote(g.Job)
	if g.Namespace != "" {
		name += fmt.Sprintf(" of namespace %q", g.Namespace)
	}
	if g.Region != "" {
		name += fmt.Sprintf(" in region %q", g.Region)
	}
	opts := c.Options(ctx)
	opts.Namespace, opts.Region = g.Namespace, g.Region
	// The job is read first: a version that is registered in between makes the
	// deployment look newer, and never older.
	// One try each: whoever asks counts what could not be asked, and asks again.
	job, _, err := c.API().Jobs().Info(g.Job, opts)
	if err != nil {
		return failed("%v", c.Fail("read job "+name, err))
	}
	d, _, err := c.API().Jobs().LatestDeployment(g.Job, opts)
	if err != nil {
		return failed("%v", c.Fail("read the deployment of job "+name, err))
	}
	return judgeDeployment(name, job, d)
}

// judgeDeployment reads the state of a deployment, whose words are those of
// Nomad's structs.DeploymentStatus*.
func judgeDeployment(name string, job *api.Job, d *api.Deployment) Answer {
	switch {
	case job.Stop != nil && *job.Stop:
		return unknown("job %s is stopped", name)
	case d == nil || d.ID == "":
		return unknown("job %s has no deployment: has it an update block, and is it of type service?", name)
	}
	if job.Version != nil && d.JobVersion < *job.Version {
		// Of a version of before: how that went says nothing.
		return answer(orchestrator.Pending, "none yet", "job %s has version %d, and its last deployment is of version %d", name, *job.Version, d.JobVersion)
	}
	what := text.Printable(d.Status)
	why := func(a orchestrator.Answer) Answer {
		id := text.Printable(d.ID)
		id = id[:min(len(id), 8)]
		return answer(a, what, "deployment %s of job %s, version %d, is %s: %s", id, name, d.JobVersion, what, text.Printable(d.StatusDescription))
	}
	switch d.Status {
	case "successful":
		return why(orchestrator.Pass)
	case "failed", "cancelled":
		return why(orchestrator.Fail)
	case "running", "paused", "pending", "initializing", "blocked", "unblocking":
		return why(orchestrator.Pending)
	}
	return why(orchestrator.Unknown)
}
