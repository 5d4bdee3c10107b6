//! Numbers that look random and follow from a seed alone.

/// SplitMix64: the same throws for the same seed on every machine and in every version of this program, so
/// that a printed seed is enough to repeat a run.
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Dice {
        Dice(seed)
    }

    /// Dice of their own for the part of a run called `name`: what is thrown elsewhere does not change them.
    pub fn apart(seed: u64, name: &str) -> Dice {
        let hash = blake3::Hasher::new().update(&seed.to_le_bytes()).update(name.as_bytes()).finalize();
        let mut first = [0; 8];
        first.copy_from_slice(&hash.as_bytes()[..8]);
        Dice(u64::from_le_bytes(first))
    }

    pub fn throw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// From `low` to `high`, both included.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        assert!(low <= high, "{low} to {high} is no range");
        // The bias towards small numbers is below 2^-32 for every range used here.
        low + self.throw() % (high - low + 1)
    }

    /// True once in `n` throws.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.throw().is_multiple_of(n)
    }

    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        assert!(!from.is_empty(), "there is nothing to pick from");
        &from[self.between(0, from.len() as u64 - 1) as usize]
    }

    /// Some of them, at least one, in their order.
    pub fn some<T: Clone>(&mut self, from: &[T]) -> Vec<T> {
        loop {
            let chosen: Vec<T> = from.iter().filter(|_| self.one_in(2)).cloned().collect();
            if !chosen.is_empty() || from.is_empty() {
                return chosen;
            }
        }
    }

    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.between(0, last as u64) as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_throws_the_same_numbers() {
        // The reference values of SplitMix64 for the seed 1234567.
        let mut dice = Dice::new(1_234_567);
        assert_eq!([dice.throw(), dice.throw()], [6_457_827_717_110_365_317, 3_203_168_211_198_807_973]);
        assert_eq!(Dice::apart(1, "a").throw(), Dice::apart(1, "a").throw());
        assert_ne!(Dice::apart(1, "a").throw(), Dice::apart(1, "b").throw());
    }

    #[test]
    fn throws_keep_to_their_range_and_reach_both_ends() {
        let mut dice = Dice::new(1);
        let seen: std::collections::BTreeSet<u64> = (0..200).map(|_| dice.between(3, 6)).collect();
        assert_eq!(seen, (3..=6).collect());
        assert!((0..50).all(|_| !dice.some(&[1, 2, 3]).is_empty()));
        let mut items = [1, 2, 3, 4, 5];
        dice.shuffle(&mut items);
        items.sort_unstable();
        assert_eq!(items, [1, 2, 3, 4, 5]);
    }
}
