#!/usr/bin/env python3
"""Monte Carlo with common random numbers, over clones of this VM, with QuantLib (Debian: quantlib-python).

    monte_carlo.py CLONES PATHS STRIKE...     prices an Asian call option at each strike

Prices of different strikes are compared, so every one has to be worked out on the same random paths: else their differences are mostly
noise. A fork gives that for nothing: each clone has a copy of QuantLib's generator, deep in C++, in the state that it had at the fork.
(What must differ, the kernel's randomness and that of cryptographic libraries, does differ: docs/identity.md.) What is expensive to set
up, the library, the market and its curves, is set up once, before the fork.
"""

import json
import math
import sys

import QuantLib as ql
import snowflock

SPOT, DIVIDENDS, VOLATILITY, YEARS, STEPS = 100.0, 0.01, 0.25, 1.0, 64
SEED = 2008


def market():
    """A Black-Scholes process on a curve of deposits and swaps of today."""
    today = ql.Date(15, 5, 2008)
    ql.Settings.instance().evaluationDate = today
    days, calendar = ql.Actual365Fixed(), ql.TARGET()
    deposits = [
        ql.DepositRateHelper(rate, ql.Period(months, ql.Months), 2, calendar, ql.ModifiedFollowing, True, ql.Actual360())
        for months, rate in ((1, 0.0210), (3, 0.0215), (6, 0.0225))
    ]
    swaps = [
        ql.SwapRateHelper(rate, ql.Period(years, ql.Years), calendar, ql.Annual, ql.Unadjusted, ql.Thirty360(ql.Thirty360.BondBasis), ql.Euribor6M())
        for years, rate in ((2, 0.0240), (5, 0.0270), (10, 0.0300))
    ]
    curve = ql.PiecewiseLogCubicDiscount(2, calendar, deposits + swaps, days)
    curve.enableExtrapolation()
    return curve, ql.BlackScholesMertonProcess(
        ql.QuoteHandle(ql.SimpleQuote(SPOT)),
        ql.YieldTermStructureHandle(ql.FlatForward(today, DIVIDENDS, days)),
        ql.YieldTermStructureHandle(curve),
        ql.BlackVolTermStructureHandle(ql.BlackConstantVol(today, calendar, VOLATILITY, days)),
    )


def price(means, discount, strike):
    """Mean of the discounted payoffs, and its standard error."""
    payoffs = [discount * max(0.0, mean - strike) for mean in means]
    average = sum(payoffs) / len(payoffs)
    variance = sum((payoff - average) ** 2 for payoff in payoffs) / len(payoffs)
    return average, math.sqrt(variance / len(payoffs))


def main():
    nclones, paths, strikes = int(sys.argv[1]), int(sys.argv[2]), [float(word) for word in sys.argv[3:]]
    curve, process = market()
    discount = curve.discount(YEARS)
    uniform = ql.UniformRandomSequenceGenerator(STEPS, ql.UniformRandomGenerator(SEED))
    generator = ql.GaussianPathGenerator(process, YEARS, STEPS, ql.GaussianRandomSequenceGenerator(uniform), False)
    generator.next()  # all of QuantLib that the clones will run is in memory now

    ticket, _allowed = snowflock.request_clone_ticket(nclones, min=1)
    vmids = [clone.vmid for clone in snowflock.read_ticket_info(ticket)]
    _nclones, vmid = snowflock.clone_master(ticket)
    if vmid != 0:
        means = []  # every clone draws the same paths
        for _ in range(paths):
            path = generator.next().value()
            means.append(sum(path[at] for at in range(1, STEPS + 1)) / STEPS)
        prices = [(strike, *price(means, discount, strike)) for strike in strikes[vmids.index(vmid) :: len(vmids)]]
        snowflock.ic_exit(result=json.dumps(prices).encode())

    found = {}
    for outcome in snowflock.join(ticket).values():
        if outcome.how != "exited":
            sys.exit("clone %d was lost: %s" % (outcome.vmid, outcome.reason))
        found.update({strike: (mean, error) for strike, mean, error in json.loads(outcome.result)})
    print(json.dumps([{"strike": strike, "price": found[strike][0], "error": found[strike][1]} for strike in strikes]))


if __name__ == "__main__":
    main()
