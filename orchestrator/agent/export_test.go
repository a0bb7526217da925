package agent

// SHA256 is for tests of the package from outside.
var SHA256 = sum256
