//go:build !race

package importcheck

const raced = false
