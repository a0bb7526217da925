package securefile

// As is the checks of a process that runs as uid.
type As int

func (u As) Folder(path string) (string, error) { return checker{int(u)}.folder(path) }

func (u As) File(path string) (string, error) { return checker{int(u)}.file(path) }

func (u As) FileIn(folder, name string) (string, error) { return checker{int(u)}.fileIn(folder, name) }

func (u As) Writable(path string) string { return checker{int(u)}.writable(path) }
