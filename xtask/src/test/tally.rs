//! What came of tests.

use std::fmt;

/// Counts of tests, with the names of those about which there is something to say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: usize,
    pub(crate) failed: Vec<String>,
    /// Tests that could not run here, and why.
    pub(crate) ignored: Vec<(String, String)>,
    /// Tests that failed and then passed, and what they said when they failed. They count as passed.
    pub(crate) wavered: Vec<(String, String)>,
}

impl Tally {
    /// One failure: something went wrong before there were tests to count.
    pub(crate) fn broken(what: &str, error: &dyn fmt::Display) -> Self {
        Self { failed: vec![format!("{what}: {error:#}")], ..Self::default() }
    }

    pub(crate) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed.extend(other.failed);
        self.ignored.extend(other.ignored);
        self.wavered.extend(other.wavered);
    }

    pub(crate) fn line(&self) -> String {
        format!("{} passed, {} failed, {} ignored", self.passed, self.failed.len(), self.ignored.len())
    }
}

/// Adds up the summaries that libtest prints, one a crate.
pub(crate) fn of_libtest(text: &str) -> Tally {
    let mut tally = Tally::default();
    for line in text.lines().filter_map(|l| l.trim().strip_prefix("test result: ")) {
        let number = |word: &str| {
            let before = line.split([';', '.']).map(str::trim).find_map(|part| part.strip_suffix(word));
            before.and_then(|n| n.trim().parse().ok()).unwrap_or(0)
        };
        tally.passed += number("passed");
        let ignored: usize = number("ignored");
        tally.ignored.extend((0..ignored).map(|_| ("a documentation example".into(), "marked so".into())));
        let failed: usize = number("failed");
        tally.failed.extend((0..failed).map(|_| "a documentation example".into()));
    }
    tally
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libtests_summaries_add_up() {
        let text = "\nrunning 2 tests\n..\ntest result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s\n\
                    test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s\n";
        let tally = of_libtest(text);
        assert_eq!(tally.line(), "5 passed, 0 failed, 1 ignored");
    }
}
