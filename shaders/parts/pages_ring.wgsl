// Pages: a layer with a window has as many as the window touches, of its own and in turn.
fn layer_page(sequence: u32, n: u32) -> u32 { return sequence * p.ring + n % p.ring; }
