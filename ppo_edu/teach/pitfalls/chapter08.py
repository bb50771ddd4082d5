"""Mistakes in the comparison of algorithms from a few runs."""

import statistics

from ppo_edu.teach.pitfalls.catalogue import pitfall


def _pooled(tasks):
    return sorted(score for task in tasks for score in task)


@pitfall(
    "mean-for-interquartile-mean",
    target="interquartile_mean",
    mistake="the mean of all scores: the outer quarters are not cut off",
    symptom="one run that never takes off decides the comparison",
    exposed_by="an outlier",
)
def _mean(*tasks):
    return statistics.fmean(_pooled(tasks))


@pitfall(
    "median-for-interquartile-mean",
    target="interquartile_mean",
    mistake="the median: all but one or two scores are thrown away",
    symptom="intervals wider than they need to be",
    exposed_by="scores that are not evenly spread",
)
def _median(*tasks):
    return statistics.median(_pooled(tasks))


@pitfall(
    "middles-of-tasks-averaged",
    target="interquartile_mean",
    mistake="the mean of each task's own middle half: tasks are not pooled before the cut",
    symptom="a robust number of another kind; an outlying task keeps its full weight",
    exposed_by="an easy task and a hard one",
)
def _by_task(*tasks):
    return statistics.fmean(_cut(sorted(task), len(task) // 4) for task in tasks)


@pitfall(
    "eighths-cut-off-for-quarters",
    target="interquartile_mean",
    mistake="a quarter cut off in all, an eighth at each end",
    symptom="outliers come back",
    exposed_by="ten scores with one outlier",
)
def _eighths(*tasks):
    pooled = _pooled(tasks)
    return _cut(pooled, len(pooled) // 8)


def _cut(scores, cut):
    return statistics.fmean(scores[cut : len(scores) - cut])


def _mean_over_tasks(ours, theirs, rate):
    return statistics.fmean(rate(x, y) for x, y in zip(ours, theirs, strict=True))


@pitfall(
    "ties-counted-as-wins",
    target="probability_of_improvement",
    mistake="ties counted as wins",
    symptom="an algorithm improves on itself",
    exposed_by="the same sample twice",
)
def _ties_win(ours, theirs):
    return _mean_over_tasks(ours, theirs, lambda x, y: statistics.fmean(float(a >= b) for a in x for b in y))


@pitfall(
    "ties-counted-as-losses",
    target="probability_of_improvement",
    mistake="ties counted as losses",
    symptom="an algorithm is worse than itself",
    exposed_by="the same sample twice",
)
def _ties_lose(ours, theirs):
    return _mean_over_tasks(ours, theirs, lambda x, y: statistics.fmean(float(a > b) for a in x for b in y))


@pitfall(
    "runs-paired-by-position",
    target="probability_of_improvement",
    mistake="only runs of the same position compared, as if seeds made pairs",
    symptom="the result depends on the order of the runs",
    exposed_by="the same runs in another order",
)
def _by_position(ours, theirs):
    return _mean_over_tasks(ours, theirs, lambda x, y: statistics.fmean((a > b) + 0.5 * (a == b) for a, b in zip(x, y, strict=False)))


@pitfall(
    "improvement-of-the-means",
    target="probability_of_improvement",
    mistake="1 where the mean is larger, else 0: how often single runs win is not asked",
    symptom="one lucky run makes an algorithm certain to improve",
    exposed_by="one large score against many small leads",
)
def _of_means(ours, theirs):
    def rate(x, y):
        a, b = statistics.fmean(x), statistics.fmean(y)
        return (a > b) + 0.5 * (a == b)

    return _mean_over_tasks(ours, theirs, rate)


@pitfall(
    "improvement-arguments-exchanged",
    target="probability_of_improvement",
    mistake="the probability that theirs improves on ours",
    symptom="the better algorithm is dropped",
    exposed_by="one task in which ours is always ahead",
)
def _exchanged(ours, theirs):
    return _mean_over_tasks(theirs, ours, lambda x, y: statistics.fmean((a > b) + 0.5 * (a == b) for a in x for b in y))


@pitfall(
    "pairs-of-all-tasks-pooled",
    target="probability_of_improvement",
    mistake="pairs of all tasks averaged together: a task with more runs weighs more",
    symptom="adding seeds to one task moves the result",
    exposed_by="two tasks of different size",
)
def _pairs_pooled(ours, theirs):
    return statistics.fmean((a > b) + 0.5 * (a == b) for x, y in zip(ours, theirs, strict=True) for a in x for b in y)
