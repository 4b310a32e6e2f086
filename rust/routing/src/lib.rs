//! Which experts see which token: scores, groups, top-k, permutation, load counters.
