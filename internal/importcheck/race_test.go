//go:build race

package importcheck

const raced = true
