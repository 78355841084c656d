//! The two forms of `/metrics`. Who asks for OpenMetrics gets it; everybody else gets the older
//! text, in which a counter's family has the name of its samples.

use std::collections::HashSet;

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    OpenMetrics,
    Text,
}

impl Form {
    /// What an `Accept` header asks for.
    pub fn asked(accept: &str) -> Self {
        if accept.contains("application/openmetrics-text") { Form::OpenMetrics } else { Form::Text }
    }

    pub const fn content_type(self) -> &'static str {
        match self {
            Form::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Form::Text => "text/plain; version=0.0.4; charset=utf-8",
        }
    }

    pub fn of(self, openmetrics: String) -> String {
        match self {
            Form::OpenMetrics => openmetrics,
            Form::Text => text(&openmetrics),
        }
    }
}

fn text(openmetrics: &str) -> String {
    let counter = |line: &'_ str| line.strip_prefix("# TYPE ")?.strip_suffix(" counter").map(str::to_owned);
    let counters: HashSet<String> = openmetrics.lines().filter_map(counter).collect();
    let mut out = String::with_capacity(openmetrics.len() + 64 * counters.len());
    for line in openmetrics.lines().filter(|line| *line != "# EOF") {
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("#"), Some(what), Some(name), Some(rest)) if counters.contains(name) => {
                out.extend(["# ", what, " ", name, "_total ", rest]);
            }
            _ => out.push_str(line),
        }
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPENMETRICS: &str = "# HELP a Takes a while\n# TYPE a counter\na_total{q=\"# HELP a\"} 1\n\
                               # HELP b Counts a counter\n# TYPE b gauge\nb 2\n# EOF\n";

    #[test]
    fn who_asks_for_openmetrics_gets_it() {
        let prometheus = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        assert_eq!(Form::asked(prometheus), Form::OpenMetrics);
        assert_eq!(Form::OpenMetrics.of(OPENMETRICS.to_owned()), OPENMETRICS);
        assert_eq!((Form::asked("*/*"), Form::asked("")), (Form::Text, Form::Text));
    }

    #[test]
    fn in_the_older_text_a_counter_has_the_name_of_its_samples() {
        let expected = "# HELP a_total Takes a while\n# TYPE a_total counter\na_total{q=\"# HELP a\"} 1\n\
                        # HELP b Counts a counter\n# TYPE b gauge\nb 2\n";
        assert_eq!(Form::Text.of(OPENMETRICS.to_owned()), expected);
    }
}
