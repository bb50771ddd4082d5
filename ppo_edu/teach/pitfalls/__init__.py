"""The catalogue of known mistakes: each entry is a minimal wrong variant of one function, with the symptom that betrays it.

The exercise checkers compare a reader's result with these variants, so that they can say *which* mistake it is; `planted`
runs the package with one of them, to see its symptom; our own tests must catch every one that can be planted.
Every variant has the parameters of the function it gets wrong.
"""

# importing a module enters its mistakes into the catalogue
from ppo_edu.teach.pitfalls import chapter01 as chapter01
from ppo_edu.teach.pitfalls import chapter02 as chapter02
from ppo_edu.teach.pitfalls import chapter03 as chapter03
from ppo_edu.teach.pitfalls import chapter04 as chapter04
from ppo_edu.teach.pitfalls import chapter05 as chapter05
from ppo_edu.teach.pitfalls import chapter06 as chapter06
from ppo_edu.teach.pitfalls import chapter07 as chapter07
from ppo_edu.teach.pitfalls import chapter08 as chapter08
from ppo_edu.teach.pitfalls import chapter09 as chapter09
from ppo_edu.teach.pitfalls import chapter10 as chapter10
from ppo_edu.teach.pitfalls import chapter11 as chapter11
from ppo_edu.teach.pitfalls import chapter12 as chapter12
from ppo_edu.teach.pitfalls import chapter13 as chapter13
from ppo_edu.teach.pitfalls import chapter14 as chapter14
from ppo_edu.teach.pitfalls import control as control
from ppo_edu.teach.pitfalls import core as core
from ppo_edu.teach.pitfalls import lm as lm
from ppo_edu.teach.pitfalls.catalogue import PITFALLS, Pitfall, pitfall, pitfalls_of
from ppo_edu.teach.pitfalls.planting import planted

__all__ = ["PITFALLS", "Pitfall", "pitfall", "pitfalls_of", "planted"]
