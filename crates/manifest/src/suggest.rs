//! Did-you-mean.

/// The candidate that a misspelt word most likely stands for, where one is near enough to be worth naming.
///
/// Case is ignored; a third of the word may differ. Of equally near candidates the first wins.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let folded = word.to_lowercase();
    let limit = 1 + word.chars().count() / 3;
    candidates
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(&folded, &candidate.to_lowercase()), candidate))
        .filter(|(distance, candidate)| *distance <= limit && *distance < candidate.chars().count())
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// The sentence about it.
pub(crate) fn did_you_mean<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<String> {
    nearest(word, candidates).map(|candidate| format!("did you mean `{candidate}`?"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_keyboard_is_recognised() {
        let fields = ["principals", "notPrincipals", "namespaces"];
        assert_eq!(nearest("prinicpals", fields), Some("principals"));
        assert_eq!(nearest("Principals", fields), Some("principals"));
        assert_eq!(nearest("notprincipal", fields), Some("notPrincipals"));
    }

    #[test]
    fn nothing_is_suggested_for_a_word_unlike_all() {
        assert_eq!(nearest("minRequestVolume", ["interval", "tls"]), None);
        assert_eq!(nearest("x", ["a"]), None);
        assert_eq!(nearest("", ["to"]), None);
    }
}
