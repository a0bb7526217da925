package command_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/aim-control/aimlock/internal/devconsul"
)

// What scripts can do besides testscript's own commands:
//
//	devconsul                          start an embedded Consul for this script and
//	                                   point CONSUL_HTTP_ADDR at it
//	exits CODE PROGRAM ARGS…           run, and check the very exit code
//	eventually PATTERN PROGRAM ARGS…   run again and again until it exits with 0 and
//	                                   its stdout matches, for at most 20 s
//	goplugin NAME FILE                 build a program of examples/plugins
//	flocked FILE                       have the file locked by flock(2) while the
//	                                   script runs
//	exec kv get KEY                    print a value
//	exec kv put KEY VALUE              write one, with `@FILE` the file's content
//	exec kv delete KEY
//	exec kv lock KEY [VALUE]           lock it by a session that nobody renews and
//	                                   nothing ends, as a foreign tool would; print
//	                                   the session
//	exec kv destroy SESSION            end a session

const eventuallyFor = 20 * time.Second

func devConsul(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) > 0 {
		ts.Fatalf("usage: devconsul")
	}
	server, err := devconsul.Start(devconsul.Config{NodeName: "dev"})
	ts.Check(err)
	ts.Defer(func() {
		if err := server.Close(); err != nil {
			ts.Logf("%v", err)
		}
	})
	ts.Setenv("CONSUL_HTTP_ADDR", server.URL())
}

// exits checks the exit code, which `! exec` does not tell.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE PROGRAM ARGS…")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		ee, ok := errors.AsType[*exec.ExitError](err)
		if !ok {
			ts.Fatalf("%v", err)
		}
		got = ee.ExitCode()
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

// words checks the words on stdout, in any order.
func words(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: words 'WORD…'")
	}
	got, want := strings.Fields(ts.ReadFile("stdout")), strings.Fields(args[0])
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		ts.Fatalf("words %q, want %q", got, want)
	}
}

func eventually(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: eventually PATTERN PROGRAM ARGS…")
	}
	pattern, err := regexp.Compile("(?m)" + args[0])
	ts.Check(err)
	deadline := time.NewTimer(eventuallyFor)
	defer deadline.Stop()
	again := time.NewTicker(50 * time.Millisecond)
	defer again.Stop()
	for {
		err := ts.Exec(args[1], args[2:]...)
		if err == nil && pattern.MatchString(ts.ReadFile("stdout")) {
			return
		}
		select {
		case <-again.C:
		case <-deadline.C:
			ts.Fatalf("%q did not print %q within %s; the last try: %v", strings.Join(args[1:], " "), args[0], eventuallyFor, err)
		}
	}
}

// kv is the program kv of the scripts.
func kv(args []string) error {
	if len(args) < 2 {
		return errors.New("usage: kv get|put|delete|lock|destroy KEY [VALUE]")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	client, err := api.NewClient(api.DefaultConfig())
	if err != nil {
		return err
	}
	write, read := (&api.WriteOptions{}).WithContext(ctx), (&api.QueryOptions{RequireConsistent: true}).WithContext(ctx)
	key, value := args[1], []byte(strings.Join(args[2:], " "))
	if file, ok := bytes.CutPrefix(value, []byte("@")); ok {
		if value, err = os.ReadFile(string(file)); err != nil {
			return err
		}
	}
	switch args[0] {
	case "get":
		pair, _, err := client.KV().Get(key, read)
		if err != nil {
			return err
		}
		if pair == nil {
			return fmt.Errorf("no key %q", key)
		}
		_, err = os.Stdout.Write(pair.Value)
		return err
	case "put":
		_, err := client.KV().Put(&api.KVPair{Key: key, Value: value}, write)
		return err
	case "delete":
		_, err := client.KV().Delete(key, write)
		return err
	case "lock":
		session, _, err := client.Session().Create(&api.SessionEntry{Name: "somebody", LockDelay: time.Millisecond}, write)
		if err != nil {
			return err
		}
		ok, _, err := client.KV().Acquire(&api.KVPair{Key: key, Value: value, Session: session}, write)
		if err == nil && !ok {
			err = fmt.Errorf("%q is locked already", key)
		}
		if err == nil {
			_, err = fmt.Println(session)
		}
		return err
	case "destroy":
		_, err := client.Session().Destroy(key, write)
		return err
	}
	return fmt.Errorf("kv has no command %q", args[0])
}
