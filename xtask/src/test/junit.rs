//! Reads the report that nextest writes: which tests passed, which failed, which did both, and which said that they could
//! not run.
//!
//! A test that cannot run says so on a line of its standard error, `ignored: REASON`. That is more than libtest's own
//! attribute can do: whether there is root or a tool is known when the test runs, not when it is compiled.

use super::tally::Tally;

const MARK: &str = "ignored: ";

/// Reads a whole report.
pub(crate) fn read(xml: &str) -> Tally {
    let mut tally = Tally::default();
    for case in xml.split("<testcase ").skip(1) {
        let case = case.split("</testcase>").next().unwrap_or(case);
        let name = format!("{} {}", attribute(case, "classname"), attribute(case, "name"));
        let output = unescape(case);
        if case.contains("<failure") || case.contains("<error") {
            tally.failed.push(name);
        } else if let Some(reason) = output.lines().find_map(reason) {
            tally.ignored.push((name, reason.to_owned()));
        } else {
            tally.passed += 1;
            if let Some((_, first)) = case.split_once("<flakyFailure") {
                tally.wavered.push((name, attribute(first, "message")));
            }
        }
    }
    tally
}

/// The reason on a line, also on the first, which the element's tag precedes.
fn reason(line: &str) -> Option<&str> {
    let line = line.rsplit_once("<system-err>").map_or(line, |(_, after)| after);
    line.strip_prefix(MARK).map(|reason| reason.split("</system-err>").next().unwrap_or(reason).trim())
}

fn attribute(case: &str, name: &str) -> String {
    let tag = case.split('>').next().unwrap_or(case);
    let start = format!("{name}=\"");
    // `name=` is also the end of `classname=`, hence the space.
    let value =
        format!(" {tag}").split(&format!(" {start}")).nth(1).and_then(|v| v.split('"').next()).map(unescape);
    value.unwrap_or_default()
}

fn unescape(text: &str) -> String {
    let text = text.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"").replace("&apos;", "'");
    text.replace("&amp;", "&")
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: &str = r#"<?xml version="1.0" encoding="UTF-8"?>
<testsuites name="nextest-run" tests="4" failures="1" errors="0">
  <testsuite name="net" tests="4">
    <testcase name="relay::tests::half_close_is_kept" classname="net" time="0.004">
      <system-out>running 1 test
test relay::tests::half_close_is_kept ... ok</system-out>
      <system-err>(test ended)</system-err>
    </testcase>
    <testcase name="netns::tests::enters" classname="net" time="0.002">
      <system-err>ignored: needs root &amp; namespaces</system-err>
    </testcase>
    <testcase name="tests::says_more" classname="net" time="0.002">
      <system-err>looking for nginx
ignored: nginx is not installed
bye</system-err>
    </testcase>
    <testcase name="tests::bad" classname="ambit-tests::netns" time="0.1">
      <failure type="test failure">thread panicked</failure>
      <system-err>ignored: does not help</system-err>
    </testcase>
  </testsuite>
</testsuites>"#;

    #[test]
    fn a_report_is_read_as_passed_failed_and_ignored_with_reasons() {
        let tally = read(REPORT);
        assert_eq!(tally.passed, 1);
        assert_eq!(tally.failed, ["ambit-tests::netns tests::bad"]);
        assert_eq!(
            tally.ignored,
            [
                ("net netns::tests::enters".to_owned(), "needs root & namespaces".to_owned()),
                ("net tests::says_more".to_owned(), "nginx is not installed".to_owned()),
            ]
        );
    }

    #[test]
    fn a_test_that_passed_the_second_time_says_what_the_first_one_said() {
        let xml = r#"<testcase name="t::slow" classname="netns">
            <flakyFailure time="1.2" message="panicked at &quot;a&quot;" type="test failure with exit code 101">
            <system-err>thread panicked</system-err></flakyFailure><system-out>ok</system-out></testcase>"#;
        let tally = read(xml);
        assert_eq!(tally.line(), "1 passed, 0 failed, 0 ignored");
        assert_eq!(tally.wavered, [("netns t::slow".to_owned(), "panicked at \"a\"".to_owned())]);
    }

    #[test]
    fn a_word_in_the_middle_of_a_line_is_no_mark() {
        let xml =
            r#"<testcase name="a" classname="b"><system-err>it was ignored: no</system-err></testcase>"#;
        assert_eq!(read(xml).passed, 1);
    }
}
