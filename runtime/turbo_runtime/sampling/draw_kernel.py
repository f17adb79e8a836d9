"""How the tokens of rows are found on a CPU: compiled code, each row by itself, whose logits stay in a cache.

Branch and bound. A row is read once for the highest logit of each block of ids. No score of a block exceeds
that with the block's highest noise, which takes few operations to bound, so few blocks are looked into, and
few of their tokens need noise of their own. The best of all tokens is the best of those that truncation
leaves, where it is one of them, which most often it is. Otherwise none is left that is as unlikely, and the
best of the likelier ones may be.
"""

from __future__ import annotations

import math
from functools import cache

from llvmlite import ir

from turbo_runtime.models.compiled.code import (
    COUNT,
    FLOAT,
    HALF_UNIT,
    UNIT,
    Compiled,
    compile_functions,
    declare,
    define,
    prefetch,
)
from turbo_runtime.sampling.noise import BLOCK, GOLDEN, UNIFORM_BITS, signed
from turbo_runtime.sampling.row_code import (
    BIT,
    BYTE,
    DOUBLE,
    LANES,
    VECTORS,
    Arguments,
    RowCode,
    gumbel_of,
    tally_of,
)
from turbo_runtime.sampling.rows import NOTHING

UNSURE = -2  # in place of a token: only the whole ranking tells it
_SLACK = 1e-6  # of a score in float32, relative, whose noise may be `_MOST_NOISE`
_MOST_NOISE = 64.0
_SUM_SLACK = 1e-5  # relative, more than the error of a sum of probabilities
_NEAR = 8.0  # nats below the likeliest token, within which nearly all probability is, most often
_DEPTH = 24.0  # nats below the likeliest token, behind which all tokens together are next to nothing
_TRIES, _HALVINGS = 32, 24
_INFINITY = math.inf


@cache
def compile_draw() -> Compiled:
    """Compile it for this processor."""
    module = ir.Module("draw")
    gumbel, tally = gumbel_of(module), tally_of(module)
    code = RowCode(define(module, "draw"))
    code.begin()
    with code.shares(code.its, code.its["rows"]) as number:
        _Search(code, number, gumbel, tally).draw()
    code.ret_void()
    (draw,) = compile_functions(module, Arguments, "draw")
    return draw


class _Search:
    """Writes how the token of one row is drawn."""

    def __init__(self, code: RowCode, number: ir.Value, gumbel: ir.Function, tally: ir.Function) -> None:
        self._code, self._number = code, number
        self._gumbel, self._tally = gumbel, tally
        self._logits = code.logits(number)
        self._key = code.read(code.its["keys"], COUNT, number)
        rules = code.at(code.its["rules"], code.mul(number, COUNT(4)), DOUBLE)
        self._temperature, self._log_min_p, self._top_k, self._top_p = (
            code.read(rules, DOUBLE, place) for place in range(4)
        )
        self._scale = code.fptrunc(self._temperature, FLOAT)
        self._token, self._best = code.variable(COUNT), code.variable(DOUBLE)
        self._above = code.variable(FLOAT)  # only tokens with a higher logit may be drawn

    def draw(self) -> None:
        """Store the token of the row."""
        code = self._code
        code.store(COUNT(NOTHING), self._token)
        mask = code.read(code.its["mask_of"], COUNT, self._number)
        with code.if_then(code.icmp_signed(">=", mask, COUNT(0))):
            self._forbid(mask)
        self._top = self._find_peaks()
        some = code.and_(
            code.fcmp_ordered(">", self._top, FLOAT(-_INFINITY)),
            code.fcmp_ordered("<", self._top, FLOAT(_INFINITY)),
        )
        with code.if_then(some):
            self._top_exact = code.fpext(self._top, DOUBLE)
            self._likeliest = self._find_likeliest()
            code.store(self._likeliest, self._token)
            with code.if_then(code.fcmp_ordered(">", self._temperature, DOUBLE(0.0))):
                self._draw_among_left()
        code.store(self._drawn, code.at(code.its["tokens"], self._number, COUNT))

    def _forbid(self, number: ir.Value) -> None:
        """Set the logits of tokens without a bit in this mask to -inf: just before the row is read anyway."""
        code = self._code
        mask = code.at(code.its["masks"], code.mul(number, code.its["mask_bytes"]), BYTE)
        last = code.sub(code.its["mask_bytes"], COUNT(1))
        vectors = code.udiv(code.add(code.vocabulary, COUNT(LANES - 1)), COUNT(LANES))
        with code.loop(COUNT(0), vectors) as vector:
            low = code.mul(vector, COUNT(2))
            high = code.add(low, COUNT(1))
            high = code.select(code.icmp_signed("<", high, last), high, last)
            bytes_ = (code.zext(code.read(mask, BYTE, place), HALF_UNIT) for place in (low, high))
            first_bits, more_bits = bytes_
            bits = code.or_(first_bits, code.shl(more_bits, HALF_UNIT(8)))
            kept = code.bitcast(bits, ir.VectorType(BIT, LANES))
            first = code.mul(vector, COUNT(LANES))
            place = code.at(self._logits, first, FLOAT)
            prefetch(code, place, 1)
            values = code.select(kept, code.values(self._logits, first), code.constant(-_INFINITY))
            code.masked_store(values, place, code.inside(first))

    @property
    def _drawn(self) -> ir.Value:
        return self._code.load(self._token, typ=COUNT)

    def _find_peaks(self) -> ir.Value:
        """Find the highest logit of each block, and return that of the row; NaN where any is."""
        code = self._code
        wrong, top = code.variable(HALF_UNIT), code.variable(FLOAT)
        code.store(HALF_UNIT(0), wrong)
        code.store(FLOAT(-_INFINITY), top)
        last = code.sub(code.groups, COUNT(1))
        code.store(code.constant(-_INFINITY), code.at(code.peaks, last, code.floats))
        with code.loop(COUNT(0), code.num_blocks) as block:
            start = code.mul(block, COUNT(BLOCK))
            for line in range(VECTORS):
                prefetch(code, code.at(self._logits, code.add(start, COUNT(line * LANES)), FLOAT), 1)
            every = [code.values(self._logits, code.add(start, COUNT(n * LANES))) for n in range(VECTORS)]
            for values in every:
                bits = code.bitcast(code.fcmp_unordered("uno", values, values), HALF_UNIT)
                code.store(code.or_(code.load(wrong, typ=HALF_UNIT), bits), wrong)
            highest = every[0]
            for values in every[1:]:
                highest = self._larger(highest, values)
            peak = code.reduce(highest, self._larger)
            code.store(peak, code.at(code.peaks, block, FLOAT))
            code.store(self._larger(peak, code.load(top, typ=FLOAT)), top)
        broken = code.icmp_unsigned("!=", code.load(wrong, typ=HALF_UNIT), HALF_UNIT(0))
        return code.select(broken, FLOAT(math.nan), code.load(top, typ=FLOAT))

    def _larger(self, one: ir.Value, other: ir.Value) -> ir.Value:
        return self._code.select(self._code.fcmp_ordered(">", one, other), one, other)

    def _find_likeliest(self) -> ir.Value:
        """The lowest id of the highest logit."""
        code = self._code
        found = code.variable(COUNT)
        code.store(COUNT(-1), found)

        def first_of(at: ir.Value, vector: ir.Value, start: ir.Value) -> None:
            equal = code.bitcast(code.fcmp_ordered("==", vector, code.splat(self._top)), HALF_UNIT)
            unknown = code.icmp_signed("<", code.load(at, typ=COUNT), COUNT(0))
            with code.if_then(code.and_(unknown, code.icmp_unsigned("!=", equal, HALF_UNIT(0)))):
                code.store(code.add(start, code.zext(code.cttz(equal, BIT(1)), COUNT)), at)

        with code.loop(COUNT(0), code.groups) as group:
            first_of(found, code.read(code.peaks, code.floats, group, 4), code.mul(group, COUNT(LANES)))
        start = code.mul(code.load(found, typ=COUNT), COUNT(BLOCK))
        token = code.variable(COUNT)
        code.store(COUNT(-1), token)
        with code.loop(COUNT(0), COUNT(VECTORS)) as vector:
            first = code.add(start, code.mul(vector, COUNT(LANES)))
            first_of(token, code.values(self._logits, first), first)
        return code.load(token, typ=COUNT)

    def _draw_among_left(self) -> None:
        """Draw until the token is one of those that truncation leaves."""
        code, open_ = self._code, self._code.variable(BIT)
        self._lowest = self._below_min_p()
        code.store(self._lowest, self._above)
        code.store(BIT(1), open_)
        # of nearly all tokens that `min_p` leaves, once it is known
        self._total, self._count = code.variable(DOUBLE), code.variable(DOUBLE)
        code.store(DOUBLE(-1.0), self._count)
        whole = code.and_(
            code.fcmp_ordered("==", self._top_k, DOUBLE(_INFINITY)),
            code.fcmp_ordered("==", self._top_p, DOUBLE(_INFINITY)),
        )
        with code.loop(COUNT(0), COUNT(_TRIES)), code.if_then(code.load(open_, typ=BIT)):
            self._search()
            sure = code.or_(whole, code.icmp_signed("==", self._drawn, self._likeliest))
            with code.if_else(sure) as (then, otherwise):
                with then:
                    code.store(BIT(0), open_)
                with otherwise:
                    left, dropped, logit = self._is_left()
                    code.store(code.and_(code.not_(left), dropped), open_)
                    code.store(logit, self._above)
                    with code.if_then(code.not_(code.or_(left, dropped))):
                        code.store(COUNT(UNSURE), self._token)
        with code.if_then(code.load(open_, typ=BIT)):
            code.store(COUNT(UNSURE), self._token)

    def _below_min_p(self) -> ir.Value:
        """The logit that `min_p` wants to be exceeded."""
        code = self._code
        exact = code.fadd(self._top_exact, code.fmul(self._temperature, self._log_min_p))
        near = code.fptrunc(exact, FLOAT)
        bits = code.bitcast(near, UNIT)
        step = code.select(code.icmp_signed("<", bits, UNIT(0)), UNIT(1), UNIT(-1))
        lower = code.bitcast(code.add(bits, step), FLOAT)  # the next one
        lower = code.select(code.fcmp_ordered("==", near, FLOAT(0.0)), FLOAT(-1e-45), lower)
        lower = code.select(code.fcmp_ordered("==", near, FLOAT(-_INFINITY)), near, lower)
        return code.select(code.fcmp_ordered("<", code.fpext(near, DOUBLE), exact), near, lower)

    def _search(self) -> None:
        """Find the best of the tokens with a logit above `above`."""
        code = self._code
        code.store(self._likeliest, self._token)
        code.store(code.call(self._gumbel, [self._key, self._likeliest]), self._best)
        above, bounds = code.splat(code.load(self._above, typ=FLOAT)), code.variable(code.floats)
        wide = ir.VectorType(COUNT, LANES)
        lanes = ir.Constant(wide, [COUNT(signed(-(lane + 1) * GOLDEN)) for lane in range(LANES)])
        with code.loop(COUNT(0), code.groups) as group:
            start = code.mul(group, COUNT(LANES))
            state = code.sub(self._key, code.mul(start, COUNT(signed(GOLDEN))))
            bits = code.mixed(code.add(code.splat(state), lanes))
            high = code.lshr(bits, ir.Constant(wide, [COUNT(64 - UNIFORM_BITS)] * LANES))
            # 1 - u is no more than -log(u)
            rest = code.sub(ir.Constant(wide, [COUNT(1 << UNIFORM_BITS)] * LANES), high)
            minimum = code.fmul(code.uitofp(rest, code.floats), code.constant(2.0**-UNIFORM_BITS / BLOCK))
            reach = code.fadd(code.splat(self._floor()), self._below_log(minimum))
            lowest = code.fadd(code.splat(self._top), code.fmul(reach, code.splat(self._scale)))
            slack = code.fmul(code.larger(lowest, code.fneg(lowest)), code.constant(_SLACK))
            lowest = code.fsub(lowest, slack)
            code.store(lowest, bounds)
            peaks = code.read(code.peaks, code.floats, group, 4)
            may_win = code.and_(code.fcmp_ordered(">=", peaks, lowest), code.fcmp_ordered(">", peaks, above))
            with code.set_lanes(may_win) as lane:
                self._look_into(code.add(start, lane), code.splat(code.read(bounds, FLOAT, lane)), above)

    def _below_log(self, values: ir.Value) -> ir.Value:
        """Return lower bounds of logarithms, off by 0.06 at most: log2(1 + m) >= m (Mitchell, 1962)."""
        code = self._code
        whole = code.sub(code.bitcast(values, code.units), code.integers(127 << 23))
        return code.fmul(code.sitofp(whole, code.floats), code.constant(math.log(2) * 2.0**-23))

    def _floor(self) -> ir.Value:
        """The best score so far, lowered by what rounding may do to a bound beside it."""
        code = self._code
        best = code.load(self._best, typ=DOUBLE)
        off = code.fmul(code.fadd(code.magnitude(best), DOUBLE(_MOST_NOISE)), DOUBLE(_SLACK))
        return code.fptrunc(code.fsub(best, off), FLOAT)

    def _look_into(self, block: ir.Value, lowest: ir.Value, above: ir.Value) -> None:
        """Score the tokens of a block whose logits are not below `lowest` and exceed `above`."""
        code = self._code
        start = code.mul(block, COUNT(BLOCK))
        with code.loop(COUNT(0), COUNT(VECTORS)) as vector:
            first = code.add(start, code.mul(vector, COUNT(LANES)))
            values = code.values(self._logits, first)
            near = code.and_(code.fcmp_ordered(">=", values, lowest), code.fcmp_ordered(">", values, above))
            with code.set_lanes(near) as lane:
                token = code.add(first, lane)
                logit = code.fpext(code.read(self._logits, FLOAT, token), DOUBLE)
                depth = code.fdiv(code.fsub(logit, self._top_exact), self._temperature)
                score = code.fadd(depth, code.call(self._gumbel, [self._key, token]))
                best = code.load(self._best, typ=DOUBLE)
                lower_id = code.icmp_signed("<", token, self._drawn)
                equal = code.and_(code.fcmp_ordered("==", score, best), lower_id)
                with code.if_then(code.or_(equal, code.fcmp_ordered(">", score, best))):
                    code.store(score, self._best)
                    code.store(token, self._token)

    def _sum_above(self, bound: ir.Value) -> tuple[ir.Value, ir.Value]:
        """`tally_of` this row."""
        code = self._code
        row = (self._logits, code.peaks, code.vocabulary, code.num_blocks, self._top, self._scale)
        found = code.call(self._tally, [*row, bound])
        return code.extract_value(found, 0), code.extract_value(found, 1)

    def _sum_within(self, depth: ir.Value) -> tuple[ir.Value, ir.Value]:
        """The same of tokens that `min_p` leaves, so many nats below the likeliest one."""
        code = self._code
        bound = code.fptrunc(code.fsub(self._top_exact, code.fmul(depth, self._temperature)), FLOAT)
        return self._sum_above(self._larger(bound, self._lowest))

    def _count_equal(self, logit: ir.Value, token: ir.Value) -> ir.Value:
        """The number of tokens before this one with its logit."""
        code = self._code
        number, logits = code.variable(COUNT), code.splat(logit)
        code.store(COUNT(0), number)
        end = code.add(code.udiv(token, COUNT(LANES)), COUNT(1))
        with code.loop(COUNT(0), end) as vector:
            first = code.mul(vector, COUNT(LANES))
            left = code.sub(token, first)
            most = code.select(code.icmp_signed("<", left, COUNT(LANES)), left, COUNT(LANES))
            before = code.icmp_signed("<", code.integers(*range(LANES)), code.splat(code.trunc(most, UNIT)))
            equal = code.fcmp_ordered("==", code.values(self._logits, first), logits)
            code.count(code.and_(before, equal), number)
        return code.sitofp(code.load(number, typ=COUNT), DOUBLE)

    def _is_left(self) -> tuple[ir.Value, ir.Value, ir.Value]:
        """Whether the token is certainly left, whether it and all with its logit are certainly dropped; and
        that logit.
        """
        code, token = self._code, self._drawn
        logit = code.read(self._logits, FLOAT, token)
        likelier, count = self._sum_above(logit)
        equal = self._count_equal(logit, token)
        depth = code.fdiv(code.fsub(code.fpext(logit, DOUBLE), self._top_exact), self._temperature)
        own = code.call(declare(code.module, "llvm.exp.f64", DOUBLE, DOUBLE), [depth])
        before = code.fadd(likelier, code.fmul(equal, own))
        ranked_within = code.fcmp_ordered("<", code.fadd(count, equal), self._top_k)
        behind_all = code.fcmp_ordered(">=", count, self._top_k)
        left, dropped = code.variable(BIT), code.variable(BIT)
        code.store(ranked_within, left)
        code.store(behind_all, dropped)
        nucleus = code.fcmp_ordered("<", self._top_p, DOUBLE(_INFINITY))
        with code.if_then(code.and_(nucleus, code.not_(behind_all))):
            self._is_left_by_top_p(before, likelier, ranked_within, (left, dropped))
        return code.load(left, typ=BIT), code.load(dropped, typ=BIT), logit

    def _is_left_by_top_p(
        self,
        before: ir.Value,
        likelier: ir.Value,
        ranked_within: ir.Value,
        verdict: tuple[ir.Value, ir.Value],
    ) -> None:
        """The same where the sum of the probabilities that `top_k` leaves matters: bounded by that of the
        tokens near the likeliest, by that of nearly all, and by halving the depth between.
        """
        code, (left, dropped) = self._code, verdict
        lower, upper, low, high = (code.variable(DOUBLE) for _ in range(4))

        def compare() -> None:
            enough = code.fmul(self._top_p, code.load(lower, typ=DOUBLE))
            surely = code.fmul(enough, DOUBLE(1 - _SUM_SLACK))
            code.store(code.and_(ranked_within, code.fcmp_ordered("<", before, surely)), left)
            beyond = code.fmul(self._top_p, code.load(upper, typ=DOUBLE))
            past = code.fmul(beyond, DOUBLE(1 + _SUM_SLACK))
            code.store(code.fcmp_ordered(">", likelier, past), dropped)

        def known() -> ir.Value:
            return code.or_(code.load(left, typ=BIT), code.load(dropped, typ=BIT))

        # the sum of the few tokens near the likeliest alone shows most often that the token is left
        code.store(DOUBLE(0.0), lower)
        code.store(DOUBLE(_INFINITY), upper)
        first = code.fcmp_ordered("<", code.load(self._count, typ=DOUBLE), DOUBLE(0.0))
        with code.if_then(first):
            near, count = self._sum_within(DOUBLE(_NEAR))
            code.store(code.select(code.fcmp_ordered(">", count, self._top_k), DOUBLE(1.0), near), lower)
        compare()
        with code.if_then(code.not_(known())):
            with code.if_then(first):
                for found, kept in zip(
                    self._sum_within(DOUBLE(_DEPTH)), (self._total, self._count), strict=True
                ):
                    code.store(found, kept)
            total, count = code.load(self._total, typ=DOUBLE), code.load(self._count, typ=DOUBLE)
            rest = code.fmul(code.sitofp(code.vocabulary, DOUBLE), DOUBLE(math.exp(-_DEPTH)))
            code.store(code.fadd(total, rest), upper)
            cut = code.fcmp_ordered(">", count, self._top_k)
            code.store(code.select(cut, DOUBLE(1.0), total), lower)
            compare()
            code.store(DOUBLE(0.0), low)
            code.store(DOUBLE(_DEPTH), high)
            with code.loop(COUNT(0), COUNT(_HALVINGS)), code.if_then(code.and_(cut, code.not_(known()))):
                ends = [code.load(end, typ=DOUBLE) for end in (low, high)]
                depth = code.fmul(code.fadd(*ends), DOUBLE(0.5))
                total, count = self._sum_within(depth)
                few = code.fcmp_ordered("<=", count, self._top_k)
                with code.if_else(few) as (then, otherwise):
                    with then:
                        more = code.fcmp_ordered(">", total, code.load(lower, typ=DOUBLE))
                        with code.if_then(more):
                            code.store(total, lower)
                        code.store(depth, low)
                    with otherwise:
                        code.store(total, upper)
                        code.store(depth, high)
                compare()
