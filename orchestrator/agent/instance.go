package agent

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/aim-control/aimlock/internal/durable"
)

// instanceFile holds what tells this state folder from any other that a node of
// this name has had or will have. With the folder it is lost when the machine is
// set up anew, and so are the files that its reports in Consul still speak of.
const instanceFile = "instance"

var instanceForm = regexp.MustCompile(`^[A-Z2-7]{26,64}$`)

// instanceOf reads the id of a state folder, and makes it where there is none.
// Of several processes that make it at the same time one wins, by the link.
func instanceOf(stateDir string) (string, error) {
	path := filepath.Join(stateDir, instanceFile)
	for range 2 {
		b, err := os.ReadFile(path)
		if id := strings.TrimSpace(string(b)); err == nil && instanceForm.MatchString(id) {
			return id, nil
		}
		switch {
		case err == nil:
			// Cut by a crash of the disk, or by hand: it tells nothing any more.
			if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return "", fmt.Errorf("state folder: %w", err)
			}
		case !errors.Is(err, fs.ErrNotExist):
			return "", fmt.Errorf("state folder: %w", err)
		}
		id := rand.Text()
		tmp := path + "." + id
		if err := durable.WriteFile(tmp, []byte(id+"\n")); err != nil {
			return "", fmt.Errorf("state folder: %w", err)
		}
		err = os.Link(tmp, path)
		_ = os.Remove(tmp)
		switch {
		case err == nil:
			return id, nil
		case !errors.Is(err, fs.ErrExist):
			return "", fmt.Errorf("state folder: %w", err)
		}
	}
	return "", fmt.Errorf("state folder: %s cannot be made out: remove it", path)
}
