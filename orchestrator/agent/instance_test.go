package agent

import (
	"os"
	"path/filepath"
	"sync"
	"testing"
)

func TestInstance(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var mu sync.Mutex
	seen := map[string]bool{}
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			id, err := instanceOf(dir)
			mu.Lock()
			defer mu.Unlock()
			if err != nil || id == "" {
				t.Errorf("got %q, %v", id, err)
			}
			seen[id] = true
		})
	}
	wg.Wait()
	if len(seen) != 1 {
		t.Fatalf("one folder has %d ids", len(seen))
	}
	left, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(left) != 1 {
		t.Errorf("left %v, %v", left, err)
	}
	if other, err := instanceOf(t.TempDir()); err != nil || seen[other] {
		t.Errorf("another folder is %q, %v", other, err)
	}
	if err := os.WriteFile(filepath.Join(dir, instanceFile), []byte("../x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if id, err := instanceOf(dir); err != nil || seen[id] || !instanceForm.MatchString(id) {
		t.Errorf("after damage it is %q, %v", id, err)
	}
}
